//! Documents that hold bundles, and requests as they are encoded.

use finial_identity::bundle::{Bundle, BundleMap, JwtAuthority, X509Authority};
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::wire;
use finial_identity::x509::{Csr, CsrSubject};
use finial_proto::spire::api::server::{agent::v1 as agent, entry::v1 as entry, svid::v1 as svid};
use finial_proto::spire::api::types;
use prost::Message as _;
use serde_json::{Value, json};

use super::put;
use super::signed::{Keys, self_signed};

pub fn documents(keys: &Keys) {
    let bundle = bundle(keys);
    put("bundle_spiffe", "plain", bundle.to_spiffe_json());
    put("bundle_spiffe", "empty", "{\"keys\":[]}");
    put(
        "bundle_spiffe",
        "no_keys",
        "{\"keys\":null,\"spiffe_sequence\":1}",
    );
    put("bundle_spiffe", "repeated_member", "{\"keys\":[],\"keys\":[]}");
    put(
        "bundle_spiffe",
        "odd_numbers",
        "{\"keys\":[],\"spiffe_sequence\":18446744073709551615,\"spiffe_refresh_hint\":-5}",
    );
    let key = Value::Object(keys.p256.public_key().to_jwk());
    let with = |members: Value| {
        let mut jwk = key.clone();
        jwk.as_object_mut()
            .unwrap()
            .extend(members.as_object().unwrap().clone());
        jwk
    };
    let entries = json!({"keys": [
        with(json!({"use":"jwt-svid","kid":"a"})), with(json!({"use":"jwt-svid","kid":"a"})), with(json!({"use":"jwt-svid"})),
        with(json!({"use":"wit-svid","kid":"w"})), with(json!({"use":"x509-svid"})), {"use":"x509-svid","kty":"EC","x5c":["AA"]}, 1
    ]});
    put("bundle_spiffe", "entries_to_skip", entries.to_string());
    put("bundle_jwks", "plain", bundle.to_jwks());
    put(
        "bundle_jwks",
        "without_use",
        json!({"keys":[with(json!({"kid":"a"})), with(json!({"kid":""}))]}).to_string(),
    );
    let map = BundleMap::from_iter([bundle, Bundle::new(TrustDomain::parse("other.org").unwrap())]);
    put("bundle_map", "plain", map.to_json());
    put(
        "bundle_map",
        "repeated",
        "{\"trust_domains\":{\"a\":{\"keys\":[]},\"a\":{\"keys\":[]}}}",
    );
    put(
        "bundle_map",
        "bad_name",
        "{\"trust_domains\":{\"spiffe://a\":{\"keys\":[]}}}",
    );
}

pub fn messages(keys: &Keys) {
    let id = |path: &str| {
        Some(types::Spiffeid {
            trust_domain: "example.org".to_owned(),
            path: path.to_owned(),
        })
    };
    let asked = types::Entry {
        id: "e1".to_owned(),
        spiffe_id: id("/db"),
        parent_id: id("/spire/agent/join_token/x"),
        selectors: vec![
            types::Selector {
                r#type: "unix".to_owned(),
                value: "uid:1000".to_owned(),
            },
            types::Selector {
                r#type: "k8s".to_owned(),
                value: "ns:prod".to_owned(),
            },
        ],
        x509_svid_ttl: 60,
        federates_with: vec!["other.org".to_owned(), "spiffe://third.org".to_owned()],
        dns_names: vec!["db.example.org".to_owned()],
        hint: "internal".to_owned(),
        ..Default::default()
    };
    let with = |choice: u8, encoded: Vec<u8>| [vec![choice], encoded].concat();
    put("wire", "entry", with(0, asked.encode_to_vec()));
    let foreign = types::Entry {
        spiffe_id: id("/spire/server"),
        ..asked.clone()
    };
    put("wire", "entry_refused", with(0, foreign.encode_to_vec()));
    put(
        "wire",
        "bundle",
        with(1, wire::bundle_to_wire(&bundle(keys)).encode_to_vec()),
    );
    let create = entry::BatchCreateEntryRequest {
        entries: vec![asked.clone(), asked],
        output_mask: Some(wire::agent_entry_mask()),
    };
    put("wire", "create_entries", with(2, create.encode_to_vec()));
    let csr = Csr::build(&keys.p256, CsrSubject::spire(), None, &[]).unwrap();
    let params = agent::attest_agent_request::Params {
        data: Some(types::AttestationData {
            r#type: "join_token".to_owned(),
            payload: b"token".to_vec(),
        }),
        params: Some(agent::AgentX509svidParams { csr: csr.clone() }),
    };
    let step = Some(agent::attest_agent_request::Step::Params(params));
    put(
        "wire",
        "attest",
        with(9, agent::AttestAgentRequest { step }.encode_to_vec()),
    );
    let sign = svid::NewX509svidParams {
        entry_id: "e1".to_owned(),
        csr,
    };
    let sign = svid::BatchNewX509svidRequest {
        params: vec![sign.clone(), sign],
    };
    put("wire", "sign_batch", with(16, sign.encode_to_vec()));
    put(
        "wire",
        "nested_struct",
        with(29, b"\x12\x04\x1a\x02\x0a\x00".to_vec()),
    );
    put(
        "wire",
        "odd_varint",
        with(5, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01".to_vec()),
    );
}

fn bundle(keys: &Keys) -> Bundle {
    let mut bundle = Bundle::new(TrustDomain::parse("example.org").unwrap());
    let jwt = JwtAuthority {
        key_id: "C6vs25welZOx6WksNYfbMfiw9l96pMnD".to_owned(),
        public_key: keys.p256.public_key().clone(),
        expires_at: 0,
        tainted: false,
    };
    bundle.append(vec![X509Authority::new(self_signed(&keys.p256))], vec![jwt]);
    bundle.sequence_number = 7;
    bundle.refresh_hint = 300;
    bundle
}
