//! Streams of Envoy's secret discovery, as `tests/fuzz/targets/sds.rs` reads them.

use std::collections::BTreeMap;

use finial_proto::envoy::config::core::v3::Node;
use finial_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use finial_proto::google::rpc;
use prost::Message;

use super::put;

const A: &str = "spiffe://example.org/a";

pub fn streams() {
    let ask = |names: &[&str], nonce: &str| DiscoveryRequest {
        resource_names: owned(names),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    };
    let refuse = DiscoveryRequest {
        error_detail: refusal(),
        ..ask(&["default", "ROOTCA"], "=")
    };
    let first = DiscoveryRequest {
        node: Some(node()),
        ..ask(&["default", "ROOTCA"], "")
    };
    let of_another_type = DiscoveryRequest {
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
        ..ask(&[], "")
    };
    let put_stream = |name: &str, steps: &[Vec<u8>]| put("sds_state_of_the_world", name, steps.concat());
    put_stream(
        "acknowledged",
        &[
            secrets(0b11, 1),
            request(&first),
            request(&ask(&["default", "ROOTCA"], "=")),
            secrets(0b11, 2),
            request(&ask(&["default", "ROOTCA"], "=")),
        ],
    );
    put_stream(
        "refused",
        &[
            request(&first),
            secrets(0b11, 1),
            request(&refuse),
            secrets(0b01, 2),
        ],
    );
    put_stream(
        "of_the_past",
        &[
            secrets(0xff, 1),
            request(&ask(&[A], "00000009")),
            request(&ask(&["ALL"], "00000009")),
            request(&ask(&["ALL"], "=")),
        ],
    );
    put_stream(
        "everything",
        &[
            request(&ask(&[], "")),
            secrets(0xff, 1),
            secrets(0, 1),
            secrets(0x0f, 3),
        ],
    );
    put_stream("another_type", &[request(&of_another_type), secrets(1, 1)]);
    delta();
}

fn delta() {
    let subscribe = |names: &[&str], nonce: &str| DeltaDiscoveryRequest {
        resource_names_subscribe: owned(names),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    };
    let unsubscribe = |names: &[&str]| DeltaDiscoveryRequest {
        resource_names_unsubscribe: owned(names),
        response_nonce: "=".to_owned(),
        ..Default::default()
    };
    let returning = DeltaDiscoveryRequest {
        node: Some(node()),
        initial_resource_versions: BTreeMap::from([
            (A.to_owned(), "0011223344556677".to_owned()),
            ("gone".to_owned(), "v".repeat(80)),
        ])
        .into_iter()
        .collect(),
        ..subscribe(&[A, "gone"], "")
    };
    let refuse = DeltaDiscoveryRequest {
        error_detail: refusal(),
        ..subscribe(&[], "=")
    };
    let put_stream = |name: &str, steps: &[Vec<u8>]| put("sds_delta", name, steps.concat());
    put_stream(
        "subscribed_and_unsubscribed",
        &[
            secrets(0b1011, 1),
            request(&subscribe(&["default", A], "")),
            request(&subscribe(&["ROOTCA"], "=")),
            request(&unsubscribe(&[A])),
            secrets(0b1011, 2),
            request(&subscribe(&["default"], "=")),
        ],
    );
    put_stream(
        "wildcard",
        &[
            request(&subscribe(&[], "")),
            secrets(0xff, 1),
            secrets(0x0f, 1),
            request(&subscribe(&["x"], "=")),
            request(&unsubscribe(&["*"])),
            request(&subscribe(&["*"], "=")),
        ],
    );
    put_stream(
        "returning",
        &[
            request(&returning),
            secrets(0b1000, 1),
            request(&refuse),
            secrets(0, 1),
        ],
    );
}

fn request(message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let length = u8::try_from(bytes.len()).expect("a short request");
    [vec![0, length], bytes].concat()
}

fn secrets(present: u8, edition: u8) -> Vec<u8> {
    vec![1, edition, present]
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn node() -> Node {
    Node {
        id: "sidecar".to_owned(),
        ..Default::default()
    }
}

fn refusal() -> Option<rpc::Status> {
    Some(rpc::Status {
        code: 13,
        message: "no such certificate".to_owned(),
        ..Default::default()
    })
}
