{{- /* One operator per namespace: a fixed name makes a second installation over the same namespaces fail instead of fight. */ -}}
{{- define "millrace.name" -}}
millrace-operator
{{- end -}}

{{- define "millrace.selector" -}}
app.kubernetes.io/name: {{ include "millrace.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "millrace.labels" -}}
{{ include "millrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- /* Reference of the image in `.image`, with the chart's appVersion in `.version`. */ -}}
{{- define "millrace.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .version }}
{{- end -}}
{{- end -}}

{{- /* What the operator may do where InferenceServices live. It reads no Secret, and writes no spec of an InferenceService. */ -}}
{{- define "millrace.rules" -}}
- apiGroups: [millrace.dev]
  resources: [inferenceservices]
  verbs: [get, list, watch]
- apiGroups: [millrace.dev]
  resources: [inferenceservices/status]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments/scale]
  verbs: [patch]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [servicemonitors]
  verbs: [get, list, create, patch, delete]
# A Secret with a password for Redis is created, and never looked at again.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
# Those that go first when a service shrinks get a mark.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
# Others' autoscalers: a Deployment that has one is left to it.
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
