{{- /* The router's configuration file. */}}
{{- define "titan.routerConfig" -}}
{{- $router := .Values.router }}
{{- $config := dict "trustedPeers" $router.trustedPeers "services" $router.services }}
{{- if and (eq $router.trustedPeers "secret") (not (or $router.trustSecretName $router.tls.clientCa)) }}
{{- fail "router.trustedPeers=secret needs router.trustSecretName or router.tls.clientCa" }}
{{- end }}
{{- if and $router.trustSecretName (ne $router.trustedPeers "secret") }}
{{- fail "router.trustSecretName has no effect without router.trustedPeers=secret" }}
{{- end }}
{{- if and $router.tls.clientCa (not $router.tls.secretName) }}
{{- fail "router.tls.clientCa needs router.tls.secretName" }}
{{- end }}
{{- with $router.trustSecretName }}
{{- $config = set $config "trustSecretFile" "/etc/titan-trust/secret" }}
{{- end }}
{{- with $router.jwt }}
{{- $config = set $config "jwt" . }}
{{- end }}
{{- if $router.tls.secretName }}
{{- $tls := dict "certificate" "/etc/titan-tls/tls.crt" "key" "/etc/titan-tls/tls.key" }}
{{- if $router.tls.clientCa }}
{{- $tls = set $tls "clientCa" "/etc/titan-tls/ca.crt" }}
{{- end }}
{{- $config = set $config "tls" $tls }}
{{- end }}
{{- merge $config $router.config | toYaml }}
{{- end }}
