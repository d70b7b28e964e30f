{{- /* The router's configuration file. */}}
{{- define "titan.routerConfig" -}}
services:
{{- range $name, $port := .Values.router.services }}
  {{ $name }}: {{ $port }}
{{- end }}
{{- end }}
