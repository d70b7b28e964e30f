{{- /* Services in cells look for the registry and the router there, and operators bind themselves from there. */}}
{{- define "titan.namespace" -}}
{{- if ne .Release.Namespace "titan-system" }}
{{- fail (printf "Titan Cells belongs in the namespace titan-system, not in %s: use --namespace titan-system" .Release.Namespace) }}
{{- end -}}
titan-system
{{- end }}

{{- /* Labels of everything in the release; the argument is (dict "root" . "name" "titan-operator"). */}}
{{- define "titan.labels" -}}
{{ include "titan.selector" . }}
app.kubernetes.io/part-of: titan-cells
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "titan.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- define "titan.image" -}}
{{ .root.Values.images.repository }}/{{ .name }}:{{ .root.Values.images.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "titan.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "titan.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "titan.logEnv" -}}
- name: TITAN_LOG
  value: {{ .Values.log.format | quote }}
- name: RUST_LOG
  value: {{ .Values.log.filter | quote }}
{{- end }}

{{- /* Probes against the health port that all our programs have. Patient ones: on a machine that is short of CPU, a
restart makes it shorter. */}}
{{- define "titan.probes" -}}
startupProbe:
  httpGet: { path: /healthz, port: metrics }
  periodSeconds: 1
  timeoutSeconds: 3
  failureThreshold: 60
livenessProbe:
  httpGet: { path: /healthz, port: metrics }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: { path: /readyz, port: metrics }
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- end }}

{{- define "titan.scheduling" -}}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels: {{- include "titan.selector" . | nindent 12 }}
topologySpreadConstraints:
- maxSkew: 1
  topologyKey: topology.kubernetes.io/zone
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "titan.selector" . | nindent 6 }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}
