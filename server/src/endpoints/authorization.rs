//! Who may call which RPC, and which rate limit the call counts for: one table for both
//! listeners. A method that has no row is denied.
//!
//! The table has classes of callers. The class of a caller is found in `caller` with `api::caller_lookup`. What a caller who
//! may call gets depends on what is stored, and is decided with it:
//!
//! | rule | where |
//! |---|---|
//! | an agent reads and has signed only the entries that it is authorized for | `registry::authorized`, asked by `api::entry_sync`, `api::svid`, `api::sync` |
//! | an agent renews itself and nobody else, and not when it is banned | `api::agent` |
//! | whoever attests is not banned, and may attest again if it did before | `api::agent_attest` |
//! | a push ends when the agent is banned, evicted or has a later SVID, or its SVID expires | `api::sync` |

use crate::api::call::CallerClass;

/// One RPC and the rules of its use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The gRPC path, `/package.Service/Method`.
    pub method: &'static str,
    /// The classes that may call it.
    pub allowed: Allowed,
    /// The bucket that pays for it; Unix socket callers never pay.
    pub bucket: Bucket,
    /// What the audit log keeps of it even when `audit_log_enabled` is off.
    pub effect: Effect,
}

/// A set of caller classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    any: bool,
    local: bool,
    admin: bool,
    downstream: bool,
    agent: bool,
}

impl Allowed {
    /// Whether callers need no identity at all.
    pub fn anybody(self) -> bool {
        self.any
    }

    /// Whether callers of this class may call.
    pub fn admits(self, class: CallerClass) -> bool {
        match class {
            CallerClass::Nobody => self.any,
            CallerClass::Local => self.any || self.local,
            CallerClass::Admin => self.any || self.admin,
            CallerClass::Downstream => self.any || self.downstream,
            CallerClass::Agent => self.any || self.agent,
        }
    }
}

/// A rate limit, as SPIRE has them: N tokens a second with a burst of N, for each remote address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bucket {
    /// Not limited.
    Unlimited,
    /// 1 attestation a second (`ratelimit.attestation`).
    Attestation,
    /// 500 X.509 signatures a second (`ratelimit.signing`).
    X509Signing,
    /// As `X509Signing`, but the call pays for each of its items once they are known.
    X509SigningPerItem,
    /// 500 JWT signatures a second (`ratelimit.signing`).
    JwtSigning,
    /// 500 WIT signatures a second, one for each item (`ratelimit.signing`).
    WitSigningPerItem,
    /// 500 published keys a second.
    KeyPublishing,
    /// 10 status posts a second.
    Status,
}

/// Whether a call leaves something changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Reads, or signs (signatures are audited where they are made).
    ReadsOrSigns,
    /// Changes what is stored.
    Changes,
    /// Changes how this server runs until it is started again; nothing is stored.
    Adjusts,
}

/// The row of a method, by its gRPC path.
pub fn row(method: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.method == method)
}

/// The whole table.
pub fn table() -> &'static [Row] {
    TABLE
}

const NOBODY: Allowed = Allowed {
    any: false,
    local: false,
    admin: false,
    downstream: false,
    agent: false,
};
const ANY: Allowed = Allowed { any: true, ..NOBODY };
const LOCAL: Allowed = Allowed {
    local: true,
    ..NOBODY
};
const ADMIN: Allowed = Allowed { admin: true, ..LOCAL };
const ADMIN_OR_AGENT: Allowed = Allowed { agent: true, ..ADMIN };
const AGENT: Allowed = Allowed {
    agent: true,
    ..NOBODY
};
const DOWNSTREAM: Allowed = Allowed {
    downstream: true,
    ..NOBODY
};

const fn reads(method: &'static str, allowed: Allowed) -> Row {
    limited(method, allowed, Bucket::Unlimited)
}

const fn limited(method: &'static str, allowed: Allowed, bucket: Bucket) -> Row {
    Row {
        method,
        allowed,
        bucket,
        effect: Effect::ReadsOrSigns,
    }
}

const fn changes(method: &'static str, allowed: Allowed) -> Row {
    Row {
        method,
        allowed,
        bucket: Bucket::Unlimited,
        effect: Effect::Changes,
    }
}

const fn adjusts(method: &'static str, allowed: Allowed) -> Row {
    Row {
        effect: Effect::Adjusts,
        ..changes(method, allowed)
    }
}

#[rustfmt::skip]
const TABLE: &[Row] = &[
    reads("/spire.api.server.entry.v1.Entry/CountEntries", ADMIN),
    reads("/spire.api.server.entry.v1.Entry/ListEntries", ADMIN),
    reads("/spire.api.server.entry.v1.Entry/GetEntry", ADMIN),
    changes("/spire.api.server.entry.v1.Entry/BatchCreateEntry", ADMIN),
    changes("/spire.api.server.entry.v1.Entry/BatchUpdateEntry", ADMIN),
    changes("/spire.api.server.entry.v1.Entry/BatchDeleteEntry", ADMIN),
    reads("/spire.api.server.entry.v1.Entry/GetAuthorizedEntries", AGENT),
    reads("/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries", AGENT),

    reads("/spire.api.server.agent.v1.Agent/CountAgents", ADMIN),
    reads("/spire.api.server.agent.v1.Agent/ListAgents", ADMIN),
    reads("/spire.api.server.agent.v1.Agent/GetAgent", ADMIN),
    changes("/spire.api.server.agent.v1.Agent/DeleteAgent", ADMIN),
    changes("/spire.api.server.agent.v1.Agent/BanAgent", ADMIN),
    Row { effect: Effect::Changes, ..limited("/spire.api.server.agent.v1.Agent/AttestAgent", ANY, Bucket::Attestation) },
    Row { effect: Effect::Changes, ..limited("/spire.api.server.agent.v1.Agent/RenewAgent", AGENT, Bucket::X509Signing) },
    changes("/spire.api.server.agent.v1.Agent/CreateJoinToken", ADMIN),
    limited("/spire.api.server.agent.v1.Agent/PostStatus", AGENT, Bucket::Status),

    reads("/spire.api.server.svid.v1.SVID/MintX509SVID", ADMIN),
    reads("/spire.api.server.svid.v1.SVID/MintJWTSVID", ADMIN),
    reads("/spire.api.server.svid.v1.SVID/MintWITSVID", ADMIN),
    limited("/spire.api.server.svid.v1.SVID/BatchNewX509SVID", AGENT, Bucket::X509SigningPerItem),
    limited("/spire.api.server.svid.v1.SVID/NewJWTSVID", AGENT, Bucket::JwtSigning),
    limited("/spire.api.server.svid.v1.SVID/BatchNewWITSVID", AGENT, Bucket::WitSigningPerItem),
    limited("/spire.api.server.svid.v1.SVID/NewDownstreamX509CA", DOWNSTREAM, Bucket::X509Signing),

    reads("/spire.api.server.bundle.v1.Bundle/CountBundles", ADMIN),
    reads("/spire.api.server.bundle.v1.Bundle/GetBundle", ANY),
    changes("/spire.api.server.bundle.v1.Bundle/AppendBundle", ADMIN),
    Row { effect: Effect::Changes, ..limited("/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority", DOWNSTREAM, Bucket::KeyPublishing) },
    Row { effect: Effect::Changes, ..limited("/spire.api.server.bundle.v1.Bundle/PublishWITAuthority", DOWNSTREAM, Bucket::KeyPublishing) },
    reads("/spire.api.server.bundle.v1.Bundle/ListFederatedBundles", ADMIN),
    reads("/spire.api.server.bundle.v1.Bundle/GetFederatedBundle", ADMIN_OR_AGENT),
    changes("/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle", ADMIN),
    changes("/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle", ADMIN),
    changes("/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle", ADMIN),
    changes("/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle", ADMIN),

    reads("/spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships", ADMIN),
    reads("/spire.api.server.trustdomain.v1.TrustDomain/GetFederationRelationship", ADMIN),
    changes("/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship", ADMIN),
    changes("/spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship", ADMIN),
    changes("/spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship", ADMIN),
    changes("/spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle", ADMIN),

    reads("/spire.api.server.localauthority.v1.LocalAuthority/GetJWTAuthorityState", ADMIN),
    changes("/spire.api.server.localauthority.v1.LocalAuthority/PrepareJWTAuthority", ADMIN),
    changes("/spire.api.server.localauthority.v1.LocalAuthority/ActivateJWTAuthority", ADMIN),
    changes("/spire.api.server.localauthority.v1.LocalAuthority/TaintJWTAuthority", ADMIN),
    changes("/spire.api.server.localauthority.v1.LocalAuthority/RevokeJWTAuthority", ADMIN),
    reads("/spire.api.server.localauthority.v1.LocalAuthority/GetX509AuthorityState", ADMIN),
    changes("/spire.api.server.localauthority.v1.LocalAuthority/PrepareX509Authority", ADMIN),
    changes("/spire.api.server.localauthority.v1.LocalAuthority/ActivateX509Authority", ADMIN),
    changes("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509Authority", ADMIN),
    changes("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509UpstreamAuthority", ADMIN),
    changes("/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509Authority", ADMIN),
    changes("/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509UpstreamAuthority", ADMIN),
    reads("/spire.api.server.localauthority.v1.LocalAuthority/GetWITAuthorityState", ADMIN),
    changes("/spire.api.server.localauthority.v1.LocalAuthority/PrepareWITAuthority", ADMIN),
    changes("/spire.api.server.localauthority.v1.LocalAuthority/ActivateWITAuthority", ADMIN),
    changes("/spire.api.server.localauthority.v1.LocalAuthority/TaintWITAuthority", ADMIN),
    changes("/spire.api.server.localauthority.v1.LocalAuthority/RevokeWITAuthority", ADMIN),

    reads("/spire.api.server.logger.v1.Logger/GetLogger", LOCAL),
    adjusts("/spire.api.server.logger.v1.Logger/SetLogLevel", LOCAL),
    adjusts("/spire.api.server.logger.v1.Logger/ResetLogLevel", LOCAL),

    reads("/spire.api.server.debug.v1.Debug/GetInfo", LOCAL),

    changes("/finial.server.registry.v1.Registry/Release", LOCAL),

    reads("/finial.server.explain.v1.Explain/ExplainPod", LOCAL),

    reads("/grpc.health.v1.Health/Check", LOCAL),
    reads("/grpc.health.v1.Health/List", LOCAL),
    reads("/grpc.health.v1.Health/Watch", LOCAL),

    reads("/finial.server.sync.v1.Sync/Watch", AGENT),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_stands_once() {
        for row in TABLE {
            let count = TABLE.iter().filter(|r| r.method == row.method).count();
            assert_eq!(count, 1, "{}", row.method);
        }
    }

    #[test]
    fn every_method_of_the_servers_services_has_a_row_and_no_row_is_without_a_method() {
        let pool = prost_reflect::DescriptorPool::decode(finial_proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut methods: Vec<String> = pool
            .services()
            .filter(|service| {
                let package = service.package_name();
                ["spire.api.server.", "finial.server.", "grpc.health."]
                    .iter()
                    .any(|served| package.starts_with(served))
            })
            .flat_map(|service| {
                let name = service.full_name().to_owned();
                service
                    .methods()
                    .map(move |method| format!("/{name}/{}", method.name()))
                    .collect::<Vec<_>>()
            })
            .collect();
        let mut rows: Vec<_> = TABLE.iter().map(|row| row.method.to_owned()).collect();
        methods.sort();
        rows.sort();
        assert_eq!(rows, methods);
    }

    #[test]
    fn a_method_without_a_row_is_not_found() {
        assert_eq!(row("/spire.api.server.entry.v1.Entry/Nothing"), None);
        assert_eq!(row("spire.api.server.entry.v1.Entry/GetEntry"), None);
    }

    #[test]
    fn agents_may_not_write_entries_and_admins_may_not_sign_as_agents() {
        let create = row("/spire.api.server.entry.v1.Entry/BatchCreateEntry").unwrap();
        assert!(!create.allowed.admits(CallerClass::Agent));
        assert!(!create.allowed.admits(CallerClass::Nobody));
        assert!(create.allowed.admits(CallerClass::Admin));
        let sign = row("/spire.api.server.svid.v1.SVID/BatchNewX509SVID").unwrap();
        assert!(!sign.allowed.admits(CallerClass::Admin));
        assert!(!sign.allowed.admits(CallerClass::Local));
        assert!(sign.allowed.admits(CallerClass::Agent));
    }

    #[test]
    fn only_attestation_and_the_own_bundle_are_open_to_anybody() {
        let open: Vec<_> = TABLE
            .iter()
            .filter(|row| row.allowed.anybody())
            .map(|row| row.method)
            .collect();
        assert_eq!(
            open,
            [
                "/spire.api.server.agent.v1.Agent/AttestAgent",
                "/spire.api.server.bundle.v1.Bundle/GetBundle"
            ]
        );
    }

    #[test]
    fn calls_that_are_named_after_a_change_change_something_and_others_do_not() {
        let changing = [
            "Append",
            "Activate",
            "Attest",
            "Ban",
            "BatchCreate",
            "BatchDelete",
            "BatchSet",
            "BatchUpdate",
            "Create",
            "Delete",
            "Prepare",
            "Publish",
            "Refresh",
            "Release",
            "Renew",
            "Reset",
            "Revoke",
            "Set",
            "Taint",
        ];
        for row in TABLE {
            let name = row.method.rsplit('/').next().unwrap();
            let changes = changing.iter().any(|verb| name.starts_with(verb));
            let expected = match changes {
                true if row.method.starts_with("/spire.api.server.logger.") => Effect::Adjusts,
                true => Effect::Changes,
                false => Effect::ReadsOrSigns,
            };
            assert_eq!(row.effect, expected, "{}", row.method);
        }
    }
}
