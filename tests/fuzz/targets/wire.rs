//! Requests of every service as they come from the network, and what is made of their parts.

use finial_identity::bundle::Bundle;
use finial_identity::entry::Entry;
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::x509::{Certificate, Csr};
use finial_identity::{json, wire};
use finial_proto::finial::server::sync::v1 as sync;
use finial_proto::spire::api::server::{
    agent::v1 as agent, bundle::v1 as bundle, entry::v1 as entry, localauthority::v1 as authority,
    logger::v1 as logger, svid::v1 as svid, trustdomain::v1 as federation,
};
use finial_proto::spire::api::types;
use finial_proto::workload;
use prost::Message;

/// The first byte chooses the message, the rest is its encoding.
pub fn run(data: &[u8]) {
    let Some((choice, encoded)) = data.split_first() else {
        return;
    };
    if let Some(read) = MESSAGES.get(usize::from(*choice)) {
        read(encoded);
    }
}

/// The corpus counts on this order: add at the end.
const MESSAGES: &[fn(&[u8])] = &[
    |bytes| message::<types::Entry>(bytes, "spire.api.types.Entry", entry_of),
    |bytes| message::<types::Bundle>(bytes, "spire.api.types.Bundle", bundle_of),
    |bytes| {
        message::<entry::BatchCreateEntryRequest>(
            bytes,
            "spire.api.server.entry.v1.BatchCreateEntryRequest",
            |it| {
                for asked in it.entries {
                    entry_of(wire::apply_entry_mask(asked.clone(), &it.output_mask));
                    entry_of(asked);
                }
            },
        );
    },
    |bytes| {
        message::<entry::BatchUpdateEntryRequest>(
            bytes,
            "spire.api.server.entry.v1.BatchUpdateEntryRequest",
            |it| {
                it.entries.into_iter().for_each(entry_of);
            },
        );
    },
    |bytes| {
        plain::<entry::BatchDeleteEntryRequest>(bytes, "spire.api.server.entry.v1.BatchDeleteEntryRequest")
    },
    |bytes| plain::<entry::ListEntriesRequest>(bytes, "spire.api.server.entry.v1.ListEntriesRequest"),
    |bytes| plain::<entry::CountEntriesRequest>(bytes, "spire.api.server.entry.v1.CountEntriesRequest"),
    |bytes| plain::<entry::GetEntryRequest>(bytes, "spire.api.server.entry.v1.GetEntryRequest"),
    |bytes| {
        plain::<entry::SyncAuthorizedEntriesRequest>(
            bytes,
            "spire.api.server.entry.v1.SyncAuthorizedEntriesRequest",
        )
    },
    |bytes| {
        message::<agent::AttestAgentRequest>(bytes, "spire.api.server.agent.v1.AttestAgentRequest", |it| {
            if let Some(agent::attest_agent_request::Step::Params(params)) = it.step {
                csr_of(&params.params.unwrap_or_default().csr);
            }
        });
    },
    |bytes| {
        message::<agent::RenewAgentRequest>(bytes, "spire.api.server.agent.v1.RenewAgentRequest", |it| {
            csr_of(&it.params.unwrap_or_default().csr);
        });
    },
    |bytes| plain::<agent::ListAgentsRequest>(bytes, "spire.api.server.agent.v1.ListAgentsRequest"),
    |bytes| plain::<agent::CreateJoinTokenRequest>(bytes, "spire.api.server.agent.v1.CreateJoinTokenRequest"),
    |bytes| {
        message::<bundle::AppendBundleRequest>(
            bytes,
            "spire.api.server.bundle.v1.AppendBundleRequest",
            |it| {
                let _read = wire::x509_authorities_from_wire(&it.x509_authorities);
                it.jwt_authorities
                    .iter()
                    .for_each(|key| drop(wire::jwt_authority_from_wire(key)));
            },
        );
    },
    |bytes| {
        message::<bundle::BatchSetFederatedBundleRequest>(
            bytes,
            "spire.api.server.bundle.v1.BatchSetFederatedBundleRequest",
            |it| it.bundle.into_iter().for_each(bundle_of),
        );
    },
    |bytes| {
        message::<bundle::PublishJwtAuthorityRequest>(
            bytes,
            "spire.api.server.bundle.v1.PublishJWTAuthorityRequest",
            |it| {
                it.jwt_authority
                    .iter()
                    .for_each(|key| drop(wire::jwt_authority_from_wire(key)))
            },
        );
    },
    |bytes| {
        message::<svid::BatchNewX509svidRequest>(
            bytes,
            "spire.api.server.svid.v1.BatchNewX509SVIDRequest",
            |it| {
                it.params.iter().for_each(|params| csr_of(&params.csr));
            },
        );
    },
    |bytes| {
        message::<svid::MintX509svidRequest>(bytes, "spire.api.server.svid.v1.MintX509SVIDRequest", |it| {
            csr_of(&it.csr)
        });
    },
    |bytes| {
        message::<svid::MintJwtsvidRequest>(bytes, "spire.api.server.svid.v1.MintJWTSVIDRequest", |it| {
            let _id = wire::spiffe_id_from_wire(it.id);
        });
    },
    |bytes| plain::<svid::NewJwtsvidRequest>(bytes, "spire.api.server.svid.v1.NewJWTSVIDRequest"),
    |bytes| {
        message::<svid::NewDownstreamX509caRequest>(
            bytes,
            "spire.api.server.svid.v1.NewDownstreamX509CARequest",
            |it| csr_of(&it.csr),
        );
    },
    |bytes| {
        plain::<federation::BatchCreateFederationRelationshipRequest>(
            bytes,
            "spire.api.server.trustdomain.v1.BatchCreateFederationRelationshipRequest",
        );
    },
    |bytes| {
        plain::<authority::TaintX509AuthorityRequest>(
            bytes,
            "spire.api.server.localauthority.v1.TaintX509AuthorityRequest",
        )
    },
    |bytes| plain::<logger::SetLogLevelRequest>(bytes, "spire.api.server.logger.v1.SetLogLevelRequest"),
    |bytes| plain::<sync::WatchRequest>(bytes, "finial.server.sync.v1.WatchRequest"),
    |bytes| {
        message::<sync::WatchResponse>(bytes, "finial.server.sync.v1.WatchResponse", |_| {
            let _sum = wire::DigestSum::from_bytes(bytes);
        });
    },
    |bytes| plain::<workload::JwtsvidRequest>(bytes, "JWTSVIDRequest"),
    |bytes| plain::<workload::ValidateJwtsvidRequest>(bytes, "ValidateJWTSVIDRequest"),
    |bytes| {
        message::<workload::X509svidResponse>(bytes, "X509SVIDResponse", |it| {
            it.svids
                .iter()
                .for_each(|svid| drop(Certificate::parse_many(&svid.x509_svid)));
        });
    },
    |bytes| {
        plain::<finial_proto::envoy::service::discovery::v3::DiscoveryRequest>(
            bytes,
            "envoy.service.discovery.v3.DiscoveryRequest",
        );
    },
];

fn plain<M: Message + Default + std::fmt::Debug>(bytes: &[u8], name: &str) {
    message::<M>(bytes, name, |_| {});
}

/// Bytes that are this message say the same when they are written again, by both decoders.
fn message<M: Message + Default + std::fmt::Debug>(bytes: &[u8], name: &str, then: impl FnOnce(M)) {
    let rendered = json::render(name, bytes);
    assert!(
        !matches!(rendered, Err(json::JsonError::UnknownMessage(_))),
        "{name} is not in the schema"
    );
    let Ok(read) = M::decode(bytes) else { return };
    let _shown = format!("{read:?}");
    let written = read.encode_to_vec();
    assert_eq!(
        M::decode(written.as_slice())
            .expect("its own encoding")
            .encode_to_vec(),
        written,
        "{name}"
    );
    then(read);
}

fn entry_of(asked: types::Entry) {
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    let _digest = wire::entry_digest(&asked);
    let Ok(parts) = wire::entry_parts_from_wire(asked, &trust_domain) else {
        return;
    };
    let Ok(checked) = Entry::check_new(parts, &trust_domain) else {
        return;
    };
    assert!(checked.selectors.is_sorted() && checked.spiffe_id.is_workload());
    let written = wire::entry_to_wire(&checked);
    let parts = wire::entry_parts_from_wire(written.clone(), &trust_domain).expect("an entry of our own");
    assert_eq!(parts, *checked);
    let again = Entry::check(parts, &trust_domain).expect("a checked entry passes again");
    assert!(again.same_identity(&checked));
    let masked = |entry| wire::apply_entry_mask(entry, &Some(wire::agent_entry_mask()));
    let once = masked(written);
    assert_eq!(masked(once.clone()), once, "masking is done with the first time");
    assert_eq!(
        wire::entry_digest(&once),
        wire::entry_digest(&masked(wire::entry_to_wire(&again)))
    );
}

fn bundle_of(asked: types::Bundle) {
    let Ok(read) = wire::bundle_from_wire(asked) else {
        return;
    };
    let again: Bundle = wire::bundle_from_wire(wire::bundle_to_wire(&read)).expect("a bundle of our own");
    assert_eq!(again, read);
    let document =
        Bundle::parse_spiffe_json(read.trust_domain.clone(), read.to_spiffe_json().as_bytes()).unwrap();
    assert_eq!(document.x509_certificates(), read.x509_certificates());
    assert_eq!(document.jwt_authorities.len(), read.jwt_authorities.len());
}

fn csr_of(der: &[u8]) {
    if let Ok(csr) = Csr::parse(der) {
        let _verified = csr.verify_self_signature();
    }
}
