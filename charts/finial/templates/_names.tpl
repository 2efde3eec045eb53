{{/* Names and labels. */}}

{{- define "finial.server.name" -}}
{{- printf "%s-server" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "finial.agent.name" -}}
{{- printf "%s-agent" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* The DaemonSet of one pool; takes a dict of root and pool. */}}
{{- define "finial.agent.pool.name" -}}
{{- if eq .pool "default" -}}
{{- include "finial.agent.name" .root -}}
{{- else -}}
{{- printf "%s-%s" (include "finial.agent.name" .root) .pool -}}
{{- end -}}
{{- end -}}

{{- define "finial.server.namespace" -}}
{{- .Values.global.spire.namespaces.server.name -}}
{{- end -}}

{{- define "finial.system.namespace" -}}
{{- .Values.global.spire.namespaces.system.name -}}
{{- end -}}

{{/* Not empty where namespaces are labelled with their names: Kubernetes does it from 1.21 on, the chart where it makes them. */}}
{{- define "finial.namespaces.haveNames" -}}
{{- if or .Values.global.spire.namespaces.create (semverCompare ">=1.21-0" .Capabilities.KubeVersion.Version) }}true{{ end -}}
{{- end -}}

{{- define "finial.server.serviceAccount" -}}
{{- (index .Values "spire-server").serviceAccount.name | default (include "finial.server.name" .) -}}
{{- end -}}

{{- define "finial.agent.serviceAccount" -}}
{{- (index .Values "spire-agent").serviceAccount.name | default (include "finial.agent.name" .) -}}
{{- end -}}

{{- define "finial.agent.account" -}}
{{- printf "%s:%s" (include "finial.system.namespace" .) (include "finial.agent.serviceAccount" .) -}}
{{- end -}}

{{- define "finial.class" -}}
{{- (index .Values "spire-server").controllerManager.className | default (printf "%s-%s" .Release.Namespace .Release.Name) -}}
{{- end -}}

{{/* Cluster-wide objects carry the namespace of the release too, so that two releases of one name do not meet. */}}
{{- define "finial.clusterwide" -}}
{{- printf "%s-%s" .Release.Namespace .Release.Name -}}
{{- end -}}

{{- define "finial.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "finial.selector" . }}
{{- end -}}

{{- define "finial.selector" -}}
app.kubernetes.io/name: finial
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "finial.image" -}}
{{- $image := .Values.image -}}
{{- $registry := .Values.global.spire.image.registry | default $image.registry -}}
{{- $name := ternary (printf "%s/%s" $registry $image.repository) $image.repository (ne $registry "") -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name ($image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "finial.bundle.key" -}}
{{- ternary "bundle.crt" "bundle.spiffe" (eq (index .Values "spire-server").bundlePublisher.k8sConfigMap.format "pem") -}}
{{- end -}}

{{/* The first value that asks for another volume than a StatefulSet has, and how they differ; takes a dict of root and current. */}}
{{- define "finial.persistence.change" -}}
{{- $wanted := (index .root.Values "spire-server").persistence -}}
{{- $templates := .current.spec.volumeClaimTemplates | default list -}}
{{- $type := ternary "pvc" "emptyDir" (gt (len $templates) 0) -}}
{{- if ne $type $wanted.type -}}
type is {{ $type }} and cannot become {{ $wanted.type }}
{{- else if $templates -}}
{{- $spec := (first $templates).spec -}}
{{- $class := include "finial.persistence.class" (dict "class" $wanted.storageClass "global" .root.Values.global.spire.persistence.storageClass) -}}
{{- $has := include "finial.persistence.class" (dict "class" $spec.storageClassName) -}}
{{- if ne (include "finial.quantity" $spec.resources.requests.storage) (include "finial.quantity" $wanted.size) -}}
size is {{ $spec.resources.requests.storage }} and cannot become {{ $wanted.size }}
{{- else if ne (first $spec.accessModes) $wanted.accessMode -}}
accessMode is {{ first $spec.accessModes }} and cannot become {{ $wanted.accessMode }}
{{- else if ne $has $class -}}
storageClass is {{ $has }} and cannot become {{ $class }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A storage class for people, from a dict of class and global. An empty one is no class, and none the cluster's default one. */}}
{{- define "finial.persistence.class" -}}
{{- $class := ternary .global .class (kindIs "invalid" .class) -}}
{{- if kindIs "invalid" $class -}}the cluster's own{{- else -}}{{- $class | default (quote "") -}}{{- end -}}
{{- end -}}

{{/* What a quantity stands for: the same of 1Gi and 1024Mi, of which Kubernetes makes the first. What is none stays as it is. */}}
{{- define "finial.quantity" -}}
{{- $units := dict "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18
  "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 "Ei" 1152921504606846976 -}}
{{- $number := regexFind "^[0-9]+([.][0-9]*)?" . -}}
{{- $unit := trimPrefix $number . -}}
{{- if and $number (hasKey $units $unit) -}}
{{- mulf $number (get $units $unit) -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{/* Where the pod of `helm test` is: without the driver it needs a folder of the node, which only the agents' namespace allows. */}}
{{- define "finial.test.namespace" -}}
{{- ternary .Release.Namespace (include "finial.system.namespace" .) (index .Values "spiffe-csi-driver").enabled -}}
{{- end -}}

{{/* Not empty where that pod gets an identity, by a rule of its own: rules are on, and do not pass its namespace over. */}}
{{- define "finial.test.identity" -}}
{{- $cm := (index .Values "spire-server").controllerManager -}}
{{- $tested := $cm.enabled -}}
{{- $namespace := include "finial.test.namespace" . -}}
{{- range $cm.ignoreNamespaces }}{{ if regexMatch . $namespace }}{{ $tested = false }}{{ end }}{{ end -}}
{{- if $tested }}true{{ end -}}
{{- end -}}

{{/* Metadata of a custom resource from a values map; takes a dict of root, name and spec. */}}
{{- define "finial.identity.metadata" -}}
metadata:
  name: {{ printf "%s-%s" (include "finial.clusterwide" .root) .name | quote }}
  labels:
    {{- include "finial.labels" .root | nindent 4 }}
    {{- with .spec.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .spec.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
