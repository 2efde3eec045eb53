{{/* What pods are allowed, in one place. docs/kubernetes.md names the reason of each right. */}}

{{/* A pod of Pod Security level restricted. OpenShift gives users itself. */}}
{{- define "finial.restricted.pod" -}}
runAsNonRoot: true
{{- if not .Values.global.openshift }}
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "finial.restricted.container" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The agent: no capability but for workloads' program files. */}}
{{- define "finial.agent.container" -}}
{{- /* Values of a pool are floating point numbers, whose text is no number from a million on. */}}
{{- $user := 0 -}}
{{- if ne (.agent.runAsUser | toString) "auto" -}}{{- $user = .agent.runAsUser | int64 -}}{{- end }}
runAsUser: {{ $user }}
runAsGroup: {{ $user }}
{{- include "finial.selinux" .root }}
{{- if ne $user 0 }}
runAsNonRoot: true
{{- end }}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
seccompProfile: {type: RuntimeDefault}
capabilities:
  drop: [ALL]
  {{- if include "finial.agent.readsPrograms" . }}
  add: [SYS_PTRACE, DAC_READ_SEARCH]
  {{- end }}
{{- end -}}

{{- define "finial.agent.readsPrograms" -}}
{{- $unix := .agent.workloadAttestors.unix -}}
{{- if and $unix.enabled $unix.discoverWorkloadPath }}true{{ end -}}
{{- end -}}

{{/* The driver: the kubelet refuses mounts that reach back to the node from anything less than privileged. */}}
{{- define "finial.csi.container" -}}
privileged: true
runAsUser: 0
runAsGroup: 0
{{- include "finial.selinux" . }}
readOnlyRootFilesystem: true
{{- end -}}

{{/* Both make sockets for other containers in folders of the node, and one sees all processes of it, which SELinux allows
     containers of this type alone. The agent labels the folders: agent.selinux. */}}
{{- define "finial.selinux" -}}
{{- if .Values.global.openshift }}
seLinuxOptions: {type: spc_t}
{{- end }}
{{- end -}}

{{/* Not empty for agents in the network of the node; takes a dict of agent. */}}
{{- define "finial.agent.hostNetwork" -}}
{{- $asked := .agent.hostNetwork | toString -}}
{{- if eq $asked "auto" -}}
{{- if eq .agent.kubeletAddress.mode "localhost" }}true{{ end -}}
{{- else if eq $asked "true" -}}
true
{{- end -}}
{{- end -}}

{{/* The one right at the kubelet: nodes/pods, or nodes/proxy before Kubernetes 1.33. */}}
{{- define "finial.kubelet.resource" -}}
{{- $asked := (index .Values "spire-agent").kubeletAuthorization -}}
{{- if eq $asked "auto" -}}
{{- ternary "nodes/pods" "nodes/proxy" (semverCompare ">=1.33-0" .Capabilities.KubeVersion.Version) -}}
{{- else -}}
{{- ternary "nodes/pods" "nodes/proxy" (eq $asked "nodesPods") -}}
{{- end -}}
{{- end -}}
