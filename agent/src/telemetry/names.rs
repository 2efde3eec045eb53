//! The metrics of the agent without those of its RPCs, which are named after the services.

/// Begins every name unless the configuration has another prefix.
pub const PREFIX: &str = "spire_agent";

/// Name without prefix, and what it means. SPIRE's names mean what they mean there; `docs/telemetry.md` tells which
/// are ours.
#[rustfmt::skip]
pub const HELP: &[(&str, &str)] = &[
    ("started", "1, with the version and the trust domain of this agent."),
    ("uptime_in_ms", "How long the agent has been running, in milliseconds."),
    ("runtime_alloc_bytes", "Bytes that the allocator has handed out."),
    ("runtime_heap_objects", "Always 0: objects are not counted."),
    ("runtime_sys_bytes", "Bytes of memory in use."),
    ("runtime_num_goroutines", "Tasks of the runtime."),
    ("bootstrapped", "1 once the agent has a trust bundle, else 0."),
    ("node_attestor_new_svid", "The agent attested to get an SVID."),
    ("agent_svid_rotate", "The agent's own SVID was renewed."),
    ("node_state", "1 for the state that the agent is in, 0 for the others."),
    ("node_degraded", "1 for each kind of trouble that there is, 0 for the others."),
    ("manager_sync_fetch_entries_updates", "The server told which entries there are or which changed."),
    ("manager_sync_fetch_svids_updates", "A batch of X.509-SVIDs was signed."),
    ("sync_snapshots", "Whole sets of entries that the server pushed."),
    ("sync_deltas", "Changes that the server pushed."),
    ("sync_polls", "Times that the server was asked for entries because it cannot push."),
    ("sync_digest_mismatches", "Times that what was held differed from what the server has."),
    ("sync_age_seconds", "Seconds since the server last confirmed what is held; -1 before that."),
    ("upstream_connections", "Connections made to the server."),
    ("lru_cache_record_map_size", "Entries that the agent is authorized for."),
    ("lru_cache_svid_map_size", "X.509-SVIDs held."),
    ("cache_x509_svids", "What happened to X.509-SVIDs in the cache."),
    ("cache_jwt_svids", "What happened when JWT-SVIDs were asked for."),
    ("cache_wit_svids", "What happened when WIT-SVIDs were asked for."),
    ("cache_manager_expiring_svids", "How many SVIDs that are held were renewed together."),
    ("jwt_svid_cache_size", "JWT-SVIDs held."),
    ("workload_api_connection", "Calls of the Workload API."),
    ("workload_api_connections", "Open calls of the Workload API."),
    ("workload_api_workload_attestation", "It was found out who calls."),
    ("workload_api_workload_attestor", "One workload attestor answered."),
    ("workload_api_discovered_selectors", "How many selectors a caller had."),
    ("workload_api_rate_limit_exceeded", "Calls refused because their method has a rate limit."),
    ("sds_api_connection", "Calls of Envoy's secret discovery."),
    ("sds_api_connections", "Open calls of Envoy's secret discovery."),
    ("delegated_identity_api_connection", "Calls of the delegated identity API."),
    ("delegated_identity_api_connections", "Open calls of the delegated identity API."),
    ("broker_api_connection", "Calls of the SPIFFE Broker API."),
    ("broker_api_connections", "Open calls of the SPIFFE Broker API."),
    ("debug_api_connection", "Calls of the debug API."),
    ("debug_api_connections", "Open calls of the debug API."),
    ("traces_dropped", "Spans that were not sent to the collector."),
];
