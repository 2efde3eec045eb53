{{/* The two configuration files, built as values and written by toYaml: nothing is spliced into text. */}}

{{- define "finial.server.config" -}}
{{- $spire := .Values.global.spire -}}
{{- $s := index .Values "spire-server" -}}
{{- $cm := $s.controllerManager -}}
{{- $server := dict
  "trust_domain" $spire.trustDomain
  "data_dir" "/var/lib/finial/server"
  "socket_path" "/dev/shm/finial/server/api.sock"
  "bind_address" (include "finial.anyAddress" .)
  "bind_port" "8081"
  "ca_key_type" $s.caKeyType
  "ca_ttl" $s.caTTL
  "default_x509_svid_ttl" $s.defaultX509SvidTTL
  "default_jwt_svid_ttl" $s.defaultJwtSvidTTL
  "log_level" ($s.logLevel | upper)
  "log_format" $s.logFormat
  "audit_log_enabled" $s.auditLogEnabled
  "disable_jwt_svids" (not $s.jwtSVIDSupport)
  "ratelimit" (dict "attestation" $s.rateLimit.attestation "signing" $s.rateLimit.signing)
  "prune_tofu_nodes" $s.pruneTOFUNodes
-}}
{{- with $s.agentTTL }}{{ $_ := set $server "agent_ttl" . }}{{ end -}}
{{- with $s.pruneAttestedNodesExpiredFor }}{{ $_ := set $server "prune_attested_nodes_expired_for" . }}{{ end -}}
{{- with $s.adminIDs }}{{ $_ := set $server "admin_ids" . }}{{ end -}}
{{- with $spire.jwtIssuer }}{{ $_ := set $server "jwt_issuer" . }}{{ end -}}
{{- $subject := dict -}}
{{- with $spire.caSubject.country }}{{ $_ := set $subject "country" (list .) }}{{ end -}}
{{- with $spire.caSubject.organization }}{{ $_ := set $subject "organization" (list .) }}{{ end -}}
{{- with $spire.caSubject.commonName }}{{ $_ := set $subject "common_name" . }}{{ end -}}
{{- with $subject }}{{ $_ := set $server "ca_subject" . }}{{ end -}}
{{- with $s.federation -}}
{{- if .enabled -}}
{{- $profile := dict "https_spiffe" dict -}}
{{- if .tls.externalSecret.enabled -}}
{{- $profile = dict "https_web" (dict "serving_cert_file" (dict
  "cert_file_path" "/etc/finial/bundle-endpoint/tls.crt"
  "key_file_path" "/etc/finial/bundle-endpoint/tls.key"
  "file_sync_interval" .bundleEndpoint.profile.httpWeb.fileSyncInterval)) -}}
{{- end -}}
{{- $_ := set $server "federation" (dict "bundle_endpoint" (dict
  "address" (.bundleEndpoint.address | default (include "finial.anyAddress" $))
  "port" (int .bundleEndpoint.port)
  "refresh_hint" .bundleEndpoint.refreshHint
  "profile" $profile)) -}}
{{- end -}}
{{- end -}}
{{- $clusters := dict -}}
{{- if $cm.enabled -}}
{{- $rules := dict
  "ignore_namespaces" $cm.ignoreNamespaces
  "class_name" (include "finial.class" .)
  "watch_classless" $cm.watchClassless
  "cluster_domain" .Values.global.k8s.clusterDomain
  "csi_driver" (index .Values "spiffe-csi-driver" "pluginName")
  "crds" (dict "manage" .Values.crds.manage)
-}}
{{- with $cm.parentIDTemplate }}{{ $_ := set $rules "parent_id_template" . }}{{ end -}}
{{- $_ := set $clusters $spire.clusterName $rules -}}
{{- end -}}
{{- range $name, $other := include "finial.others" (dict "root" . "of" $s.externalControllerManagers) | fromYaml -}}
{{- $rules := dict
  "kube_config_file" $other.file
  "ignore_namespaces" $other.ignoreNamespaces
  "class_name" ($other.className | default (include "finial.class" $))
  "watch_classless" $other.watchClassless
  "cluster_domain" $.Values.global.k8s.clusterDomain
  "csi_driver" (index $.Values "spiffe-csi-driver" "pluginName")
  "crds" (dict "manage" $.Values.crds.manage)
-}}
{{- with $other.parentIDTemplate }}{{ $_ := set $rules "parent_id_template" . }}{{ end -}}
{{- $_ := set $clusters $name $rules -}}
{{- end -}}
{{- with $clusters }}{{ $_ := set $server "kubernetes" (dict "clusters" .) }}{{ end -}}

{{- $accounts := $s.nodeAttestor.k8sPSAT.serviceAccountAllowList -}}
{{- if not $accounts -}}
{{- $accounts = list (include "finial.agent.account" .) -}}
{{- end -}}
{{- $psat := dict "service_account_allow_list" $accounts "audience" $s.nodeAttestor.k8sPSAT.audience
  "verify_client_ip" $s.nodeAttestor.k8sPSAT.verifyClientIP -}}
{{- with $s.nodeAttestor.k8sPSAT.allowedNodeLabelKeys }}{{ $_ := set $psat "allowed_node_label_keys" . }}{{ end -}}
{{- with $s.nodeAttestor.k8sPSAT.allowedPodLabelKeys }}{{ $_ := set $psat "allowed_pod_label_keys" . }}{{ end -}}

{{- $attested := dict $spire.clusterName $psat -}}
{{- range $name, $other := include "finial.others" (dict "root" . "of" $s.nodeAttestor.externalK8sPSAT) | fromYaml -}}
{{- $_ := set $attested $name (dict
  "kube_config_file" $other.file
  "service_account_allow_list" ($other.serviceAccountAllowList | default (list (include "finial.agent.account" $)))
  "audience" $other.audience
  "allowed_node_label_keys" $other.allowedNodeLabelKeys
  "allowed_pod_label_keys" $other.allowedPodLabelKeys
  "verify_client_ip" $other.verifyClientIP) -}}
{{- end -}}

{{- $keys := dict "disk" (dict "plugin_data" (dict "keys_path" "/var/lib/finial/server/keys.json")) -}}
{{- if $s.keyManager.memory.enabled }}{{ $keys = dict "memory" (dict "plugin_data" dict) }}{{ end -}}
{{- $publisher := dict
  "namespace" (include "finial.system.namespace" .)
  "configmap_name" $spire.bundleConfigMap
  "configmap_key" (include "finial.bundle.key" .)
  "format" $s.bundlePublisher.k8sConfigMap.format
-}}
{{- $published := dict $spire.clusterName $publisher -}}
{{- range $name, $other := include "finial.others" (dict "root" . "of" $s.bundlePublisher.externalK8sConfigMap) | fromYaml -}}
{{- $_ := set $published $name (dict
  "kubeconfig_path" $other.file
  "namespace" ($other.namespace | default (include "finial.system.namespace" $))
  "configmap_name" ($other.configMapName | default $spire.bundleConfigMap)
  "configmap_key" ($other.configMapKey | default (ternary "bundle.crt" "bundle.spiffe" (eq $other.format "pem")))
  "format" $other.format) -}}
{{- end -}}
{{- $plugins := dict
  "DataStore" (dict "sql" (dict "plugin_data" (dict
    "database_type" $s.dataStore.sql.databaseType
    "connection_string" "/var/lib/finial/server/datastore.sqlite3")))
  "KeyManager" $keys
  "NodeAttestor" (dict "k8s_psat" (dict "plugin_data" (dict "clusters" $attested)))
  "BundlePublisher" (dict "k8s_configmap" (dict "plugin_data" (dict "clusters" $published)))
-}}
{{- if $s.credentialComposer.uniqueID.enabled }}
{{- $_ := set $plugins "CredentialComposer" (dict "uniqueid" (dict "plugin_data" dict)) }}
{{- end -}}
{{- $config := dict "server" $server "plugins" $plugins "health_checks" (dict
  "listener_enabled" true "bind_address" (include "finial.anyAddress" .) "bind_port" "8080") -}}
{{- if .Values.global.telemetry.prometheus.enabled -}}
{{- $_ := set $config "telemetry" (dict "Prometheus" (dict "host" (include "finial.anyAddress" .) "port" 9988)) -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* What one of the blocks for other clusters says of each, and the file of its kubeconfig; takes a dict of root and of (the
     block), gives YAML. */}}
{{- define "finial.others" -}}
{{- $ways := (index .root.Values "spire-server").kubeConfigs -}}
{{- $found := dict -}}
{{- if .of.enabled -}}
{{- $clusters := .of.clusters -}}
{{- if not $clusters }}{{ range $name, $way := $ways }}{{ $_ := set $found $name (dict) }}{{ end }}{{ $clusters = $found }}{{ end -}}
{{- range $name, $own := $clusters -}}
{{- $way := ($own | default dict).kubeConfigName | default $name -}}
{{- $settings := mergeOverwrite (deepCopy $.of.defaults) (deepCopy ($own | default dict)) -}}
{{- $_ := set $found $name (set $settings "file" (printf "/etc/finial/kubeconfigs/%s" $way)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $found -}}
{{- end -}}

{{/* Takes a dict of root and agent. */}}
{{- define "finial.agent.config" -}}
{{- $root := .root -}}
{{- $a := .agent -}}
{{- $spire := $root.Values.global.spire -}}
{{- $csi := index $root.Values "spiffe-csi-driver" -}}
{{- $service := (index $root.Values "spire-server").service -}}
{{- $any := include "finial.anyAddress" $root -}}
{{- $local := ternary "127.0.0.1" $any (ne (include "finial.agent.hostNetwork" .) "") -}}
{{- $address := printf "%s.%s.svc.%s" (include "finial.server.name" $root) (include "finial.server.namespace" $root) $root.Values.global.k8s.clusterDomain -}}
{{- $agent := dict
  "trust_domain" $spire.trustDomain
  "data_dir" "/var/lib/finial/agent"
  "server_address" ($a.server.address | default $address)
  "server_port" ($a.server.port | default $service.port | int | toString)
  "socket_path" $a.socketPath
  "admin_socket_path" (printf "%s/admin.sock" (include "finial.agent.admin" .))
  "rebootstrap_mode" $a.rebootstrapMode
  "log_level" ($a.logLevel | upper)
  "log_format" $a.logFormat
  "sds" (dict
    "default_svid_name" $a.sds.defaultSVIDName
    "default_bundle_name" $a.sds.defaultBundleName
    "default_all_bundles_name" $a.sds.defaultAllBundlesName
    "disable_spiffe_cert_validation" $a.sds.disableSPIFFECertValidation)
  "experimental" (dict "sync_interval" $a.experimental.syncInterval)
-}}
{{- if ne $a.rebootstrapMode "never" }}{{ $_ := set $agent "rebootstrap_delay" $a.rebootstrapDelay }}{{ end -}}
{{- if $a.trustBundleURL -}}
{{- $_ := set $agent "trust_bundle_url" $a.trustBundleURL -}}
{{- $_ := set $agent "trust_bundle_format" $a.trustBundleFormat -}}
{{- else -}}
{{- /* Asked for, not mounted: a kubelet would bring it a minute or more after the server has written it. */ -}}
{{- $_ := set $agent "trust_bundle_config_map" (dict
  "namespace" (include "finial.system.namespace" $root)
  "name" $spire.bundleConfigMap
  "key" (include "finial.bundle.key" $root)) -}}
{{- $_ := set $agent "trust_bundle_format" (index $root.Values "spire-server").bundlePublisher.k8sConfigMap.format -}}
{{- end -}}
{{- if $root.Values.global.openshift }}{{ $_ := set $agent "selinux" (dict "socket_type" "container_file_t") }}{{ end -}}
{{- with $a.authorizedDelegates }}{{ $_ := set $agent "authorized_delegates" . }}{{ end -}}
{{- with $a.availabilityTarget }}{{ $_ := set $agent "availability_target" . }}{{ end -}}
{{- if $csi.enabled -}}
{{- $_ := set $agent "csi" (dict
  "plugin_name" $csi.pluginName
  "socket_dir" $csi.socketsPath
  "socket_names" $a.socketAlternate.names
  "kubelet_path" $csi.kubeletPath
  "health" (dict "bind_address" $local "port" ($csi.healthChecks.port | int))) -}}
{{- with include "finial.kubelet.certificates" (dict "agent" $a) }}{{ $_ := set $agent.csi "kubelet_certificates" (splitList "\n" .) }}{{ end -}}
{{- end -}}

{{- if $a.sockets.broker.enabled -}}
{{- $brokers := list -}}
{{- range $name, $broker := $a.brokerAPI.brokers -}}
{{- if ne ($broker.enabled | toString) "false" -}}
{{- $references := list -}}
{{- range $broker.allowedReferenceTypes }}{{ $references = append $references (dict "type_url" .typeURL) }}{{ end -}}
{{- $id := tpl $broker.idTemplate (dict "TrustDomain" $spire.trustDomain "Template" $root.Template) -}}
{{- $brokers = append $brokers (dict "id" $id "allowed_reference_types" $references) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $agent.experimental "broker" (dict
  "socket_path" (printf "%s/broker.sock" (include "finial.agent.broker" .))
  "brokers" $brokers) -}}
{{- end -}}

{{- $k8s := dict
  "disable_container_selectors" $a.workloadAttestors.k8s.disableContainerSelectors
  "verbose_container_locator_logs" $a.workloadAttestors.k8s.verboseContainerLocatorLogs
  "enable_namespace_labels" $a.workloadAttestors.k8s.enableNamespaceLabels
-}}
{{- /* The driver passes the kubelet's certificate on without its key; without a driver one that has no key in its file is mounted. */ -}}
{{- $passed := ternary (printf "%s/kubelet.pem" $csi.socketsPath) "/run/finial/kubelet/kubelet.crt" $csi.enabled -}}
{{- $verification := $a.workloadAttestors.k8s.verification.type -}}
{{- if eq $verification "skip" -}}
{{- $_ := set $k8s "skip_kubelet_verification" true -}}
{{- else if eq $verification "hostCert" -}}
{{- $_ := set $k8s "kubelet_ca_path" $passed -}}
{{- else -}}
{{- $_ := set $k8s "kubelet_ca_path" "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt" -}}
{{- if and (eq $verification "auto") $csi.enabled }}{{ $_ := set $k8s "kubelet_certificate" (dict "paths" (list $passed)) }}{{ end -}}
{{- end -}}
{{- if eq $a.kubeletAddress.mode "custom" }}{{ $_ := set $k8s "node_name_env" "KUBELET_ADDR" }}{{ end -}}
{{- $attestors := dict "k8s" (dict "plugin_data" $k8s) -}}
{{- if $a.workloadAttestors.unix.enabled -}}
{{- $_ := set $attestors "unix" (dict "plugin_data" (dict "discover_workload_path" $a.workloadAttestors.unix.discoverWorkloadPath)) -}}
{{- end -}}
{{- $plugins := dict
  "KeyManager" (dict "memory" (dict "plugin_data" dict))
  "NodeAttestor" (dict "k8s_psat" (dict "plugin_data" (dict
    "cluster" $spire.clusterName
    "token_path" "/var/run/secrets/tokens/spire-agent")))
  "WorkloadAttestor" $attestors
-}}
{{- $config := dict "agent" $agent "plugins" $plugins "health_checks" (dict
  "listener_enabled" true "bind_address" $local "bind_port" ($a.healthChecks.port | int | toString)) -}}
{{- if $root.Values.global.telemetry.prometheus.enabled -}}
{{- $_ := set $config "telemetry" (dict "Prometheus" (dict "host" $any "port" 9988)) -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* Folders of the two sockets that are not for workloads: of the node where values say so, else of the pod's memory. Take a
     dict of root and agent. */}}
{{- define "finial.agent.admin" -}}
{{- if .agent.sockets.admin.mountOnHost -}}
{{- printf "%s/%s/admin" .agent.sockets.hostBasePath (index .root.Values "spiffe-csi-driver").pluginName -}}
{{- else -}}
/dev/shm/finial/agent-admin
{{- end -}}
{{- end -}}

{{- define "finial.agent.broker" -}}
{{- if .agent.sockets.broker.mountOnHost -}}
{{- printf "%s/%s/broker" .agent.sockets.hostBasePath (index .root.Values "spiffe-csi-driver").pluginName -}}
{{- else -}}
/dev/shm/finial/agent-broker
{{- end -}}
{{- end -}}

{{/* Every address of a pod. */}}
{{- define "finial.anyAddress" -}}
{{- ternary "::" "0.0.0.0" (eq .Values.global.k8s.ipFamily "IPv6") -}}
{{- end -}}

{{/* The files of the node that may have the kubelet's own certificate, one a line; takes a dict of agent. */}}
{{- define "finial.kubelet.certificates" -}}
{{- $verification := .agent.workloadAttestors.k8s.verification -}}
{{- $own := printf "%s/%s" $verification.hostCert.basePath $verification.hostCert.fileName -}}
{{- if eq $verification.type "auto" -}}
{{ printf "%s/kubelet-server-current.pem" $verification.hostCert.basePath }}
{{ $own }}
{{- else if eq $verification.type "hostCert" -}}
{{ $own }}
{{- end -}}
{{- end -}}

{{/* The values of one pool; takes a dict of root and pool, gives YAML. */}}
{{- define "finial.agent.values" -}}
{{- $all := index .root.Values "spire-agent" -}}
{{- $own := deepCopy (index $all.agents .pool | default dict) -}}
{{- toYaml (mergeOverwrite (omit (deepCopy $all) "agents") $own) -}}
{{- end -}}

{{/* Names of the pools, one a line. */}}
{{- define "finial.agent.pools" -}}
{{- concat (list "default") (keys (index .Values "spire-agent").agents | sortAlpha) | uniq | join "\n" -}}
{{- end -}}
