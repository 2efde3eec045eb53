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
{{- $_ := set $server "kubernetes" (dict "clusters" (dict $spire.clusterName $rules)) -}}
{{- end -}}

{{- $accounts := $s.nodeAttestor.k8sPSAT.serviceAccountAllowList -}}
{{- if not $accounts -}}
{{- $accounts = list (printf "%s:%s" (include "finial.system.namespace" .) (include "finial.agent.serviceAccount" .)) -}}
{{- end -}}
{{- $psat := dict "service_account_allow_list" $accounts "audience" $s.nodeAttestor.k8sPSAT.audience -}}
{{- if $s.nodeAttestor.k8sPSAT.verifyClientIP }}{{ $_ := set $psat "verify_client_ip" true }}{{ end -}}
{{- with $s.nodeAttestor.k8sPSAT.allowedNodeLabelKeys }}{{ $_ := set $psat "allowed_node_label_keys" . }}{{ end -}}
{{- with $s.nodeAttestor.k8sPSAT.allowedPodLabelKeys }}{{ $_ := set $psat "allowed_pod_label_keys" . }}{{ end -}}

{{- $keys := dict "disk" (dict "plugin_data" (dict "keys_path" "/var/lib/finial/server/keys.json")) -}}
{{- if $s.keyManager.memory.enabled }}{{ $keys = dict "memory" (dict "plugin_data" dict) }}{{ end -}}
{{- $publisher := dict
  "namespace" (include "finial.system.namespace" .)
  "configmap_name" $spire.bundleConfigMap
  "configmap_key" (include "finial.bundle.key" .)
  "format" $s.bundlePublisher.k8sConfigMap.format
-}}
{{- $plugins := dict
  "DataStore" (dict "sql" (dict "plugin_data" (dict
    "database_type" $s.dataStore.sql.databaseType
    "connection_string" "/var/lib/finial/server/datastore.sqlite3")))
  "KeyManager" $keys
  "NodeAttestor" (dict "k8s_psat" (dict "plugin_data" (dict "clusters" (dict $spire.clusterName $psat))))
  "BundlePublisher" (dict "k8s_configmap" (dict "plugin_data" (dict "clusters" (dict $spire.clusterName $publisher))))
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

{{/* Takes a dict of root and agent. */}}
{{- define "finial.agent.config" -}}
{{- $root := .root -}}
{{- $a := .agent -}}
{{- $spire := $root.Values.global.spire -}}
{{- $csi := index $root.Values "spiffe-csi-driver" -}}
{{- $service := (index $root.Values "spire-server").service -}}
{{- $address := printf "%s.%s.svc.%s" (include "finial.server.name" $root) (include "finial.server.namespace" $root) $root.Values.global.k8s.clusterDomain -}}
{{- $agent := dict
  "trust_domain" $spire.trustDomain
  "data_dir" "/var/lib/finial/agent"
  "server_address" ($a.server.address | default $address)
  "server_port" ($a.server.port | default $service.port | int | toString)
  "socket_path" $a.socketPath
  "admin_socket_path" "/dev/shm/finial/agent-admin/admin.sock"
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
{{- with $a.authorizedDelegates }}{{ $_ := set $agent "authorized_delegates" . }}{{ end -}}
{{- with $a.availabilityTarget }}{{ $_ := set $agent "availability_target" . }}{{ end -}}
{{- if $csi.enabled -}}
{{- $_ := set $agent "csi" (dict
  "plugin_name" $csi.pluginName
  "socket_dir" $csi.socketsPath
  "socket_names" $a.socketAlternate.names
  "kubelet_path" $csi.kubeletPath) -}}
{{- with include "finial.kubelet.certificates" (dict "agent" $a) }}{{ $_ := set $agent.csi "kubelet_certificates" (splitList "\n" .) }}{{ end -}}
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
{{- $any := include "finial.anyAddress" $root -}}
{{- $local := ternary "127.0.0.1" $any (ne (include "finial.agent.hostNetwork" .) "") -}}
{{- $config := dict "agent" $agent "plugins" $plugins "health_checks" (dict
  "listener_enabled" true "bind_address" $local "bind_port" ($a.healthChecks.port | int | toString)) -}}
{{- if $root.Values.global.telemetry.prometheus.enabled -}}
{{- $_ := set $config "telemetry" (dict "Prometheus" (dict "host" $any "port" 9988)) -}}
{{- end -}}
{{- toYaml $config -}}
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
