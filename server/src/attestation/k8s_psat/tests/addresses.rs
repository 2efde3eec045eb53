//! From where a token may be sent (`verify_client_ip`).

use std::net::Ipv4Addr;

use super::*;

#[tokio::test]
async fn a_token_that_is_replayed_from_another_node_is_refused() {
    let server = ApiServer::new();
    let attestor = server.attestor_with(|settings| settings.verify_client_ip = true);
    let from = |address: [u8; 4]| Caller(Some(Ipv4Addr::from(address).into()));
    for fine in [[172, 16, 0, 1], [10, 1, 2, 3]] {
        attestor
            .attest(&payload("demo", TOKEN), &mut from(fine))
            .await
            .unwrap();
    }
    let mapped: IpAddr = "::ffff:172.16.0.2".parse().unwrap();
    for (mut stranger, why) in [
        (
            from([172, 16, 0, 2]),
            "token was sent from 172.16.0.2, which is neither",
        ),
        (
            Caller(Some(mapped)),
            "token was sent from 172.16.0.2, which is neither",
        ),
        (Caller(None), "token was sent from no address"),
    ] {
        let error = attestor
            .attest(&payload("demo", TOKEN), &mut stranger)
            .await
            .unwrap_err();
        assert!(matches!(error, AttestError::Denied(_)), "{error:?}");
        let shown = format!("{error} {error:?}");
        assert!(
            shown.contains(why) && shown.contains("verify_client_ip"),
            "{shown}"
        );
        assert!(!shown.contains("c2VjcmV0"), "shows the token: {shown}");
    }
    // Off, as it is unless asked for, the same token is as good from there as from its own node.
    let mut elsewhere = from([172, 16, 0, 2]);
    let taken = server
        .attestor()
        .attest(&payload("demo", TOKEN), &mut elsewhere)
        .await;
    assert!(taken.unwrap().agent_id.as_str().ends_with(NODE_UID));
}

/// The agent begins to run a moment before its kubelet reports its address, and need not give up.
#[tokio::test]
async fn a_pod_that_has_no_address_yet_is_no_refusal() {
    let server = ApiServer::new();
    let attestor = server.attestor_with(|settings| settings.verify_client_ip = true);
    let mut own = Caller(Some(Ipv4Addr::new(10, 1, 2, 3).into()));
    server.change(|facts| facts.pod["status"] = json!({"phase": "Pending"}));
    let error = attestor
        .attest(&payload("demo", TOKEN), &mut own)
        .await
        .unwrap_err();
    assert!(matches!(error, AttestError::Unavailable { .. }), "{error:?}");
    server.change(|facts| facts.pod["status"] = json!({"phase": "Running", "podIP": "10.1.2.3"}));
    attestor.attest(&payload("demo", TOKEN), &mut own).await.unwrap();
}

/// What an agent in the network of its node sends to a pod leaves through the node's bridge or tunnel.
#[tokio::test]
async fn agents_with_the_nodes_network_may_call_from_the_range_of_its_pods_and_others_may_not() {
    let server = ApiServer::new();
    let attestor = server.attestor_with(|settings| settings.verify_client_ip = true);
    server.change(|facts| {
        facts.node["spec"] = json!({"podCIDR": "10.1.2.0/24", "podCIDRs": ["10.1.2.0/24", "fd00:1:2::/64"]});
    });
    let is_taken = async |address: &str| {
        let address: IpAddr = address.parse().unwrap();
        let attested = attestor
            .attest(&payload("demo", TOKEN), &mut Caller(Some(address)))
            .await;
        attested.is_ok()
    };
    let of_range = ["10.1.2.0", "10.1.2.1", "fd00:1:2::1"];
    for neighbour in of_range {
        assert!(
            !is_taken(neighbour).await,
            "{neighbour} is another pod, or the node's bridge"
        );
    }
    assert!(is_taken("10.1.2.3").await);
    server.change(|facts| facts.pod["spec"]["hostNetwork"] = json!(true));
    for own in of_range {
        assert!(is_taken(own).await, "{own}");
    }
    // Of another node.
    for stranger in ["10.1.3.1", "fd00:1:3::1", "172.16.0.2"] {
        assert!(!is_taken(stranger).await, "{stranger}");
    }
}

#[tokio::test]
async fn addresses_are_the_same_however_they_are_written_and_there_may_be_several() {
    let server = ApiServer::new();
    let attestor = server.attestor_with(|settings| settings.verify_client_ip = true);
    server.change(|facts| {
        facts.pod["status"] = json!({
            "phase": "Running", "podIP": "::ffff:10.1.2.3",
            "podIPs": [{"ip": "fd00:1:0::0003"}],
            "hostIPs": [{"ip": "fd00:2::1"}],
        });
        facts.node["status"]["addresses"] = json!([
            {"type": "InternalIP", "address": "172.16.0.1"}, {"type": "ExternalIP", "address": "2001:db8::1"}
        ]);
    });
    let attest_from = async |address: &str| {
        let address: IpAddr = address.parse().unwrap();
        let mut caller = Caller(Some(address));
        attestor
            .attest(&payload("demo", TOKEN), &mut caller)
            .await
            .is_ok()
    };
    for fine in ["10.1.2.3", "fd00:1::3", "fd00:2::1", "172.16.0.1", "2001:db8::1"] {
        assert!(attest_from(fine).await, "{fine}");
    }
    for stranger in ["10.1.2.4", "fd00:1::4", "::", "0.0.0.0"] {
        assert!(!attest_from(stranger).await, "{stranger}");
    }
}
