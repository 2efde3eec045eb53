//! Where an agent may call from when its token must not have left its node.
//!
//! An agent in the network of the pods has its pod's addresses, or, where the network hides pods behind their node, its
//! node's. One in the network of its node (`hostNetwork`) has the node's addresses too, but what it sends to a pod leaves
//! through the node's own leg in the network of the pods: a bridge or a tunnel, whose address is in no object but in the
//! node's range of pods' addresses. All of these are of the one node.

use std::net::IpAddr;

use super::objects::{Node, Pod};

/// What an agent on a node may call from.
#[derive(Debug)]
pub(super) struct Addresses {
    /// Whether the pod's own are among them.
    pub(super) are_known: bool,
    single: Vec<IpAddr>,
    ranges: Vec<Range>,
}

/// A range in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: IpAddr,
    prefix: u8,
}

impl Addresses {
    /// Those of this pod on this node. What is no address is passed over.
    pub(super) fn of(pod: &Pod, node: &Node) -> Self {
        let status = &pod.status;
        let of_pod = status.pod_ips.iter().flatten().map(|own| &own.ip);
        let of_host = status.host_ips.iter().flatten().map(|own| &own.ip);
        let of_node = node.status.addresses.iter().flatten().map(|own| &own.address);
        let single = of_pod
            .chain(of_host)
            .chain(of_node)
            .chain(&status.pod_ip)
            .chain(&status.host_ip)
            .filter_map(|text| text.parse::<IpAddr>().ok())
            .map(|address| address.to_canonical())
            .collect();
        let of_pods = node.spec.pod_cidrs.iter().flatten().chain(&node.spec.pod_cidr);
        let ranges = match pod.spec.host_network {
            Some(true) => of_pods.filter_map(|text| Range::parse(text)).collect(),
            _ => Vec::new(),
        };
        Self {
            are_known: status.pod_ip.as_ref().is_some_and(|own| !own.is_empty()),
            single,
            ranges,
        }
    }

    /// Whether a canonical address is one of them.
    pub(super) fn have(&self, address: IpAddr) -> bool {
        self.single.contains(&address) || self.ranges.iter().any(|range| range.has(address))
    }
}

impl Range {
    /// `None` also for a range of all addresses, which would be no check.
    fn parse(text: &str) -> Option<Self> {
        let (first, prefix) = text.split_once('/')?;
        let (first, prefix) = (first.parse::<IpAddr>().ok()?, prefix.parse::<u8>().ok()?);
        let longest = if first.is_ipv4() { 32 } else { 128 };
        (1..=longest).contains(&prefix).then_some(Self { first, prefix })
    }

    fn has(self, address: IpAddr) -> bool {
        match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                (first.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                (first.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(self.prefix)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_what_shares_its_first_bits() {
        let has = |range: &str, address: &str| Range::parse(range).unwrap().has(address.parse().unwrap());
        assert!(has("10.244.1.0/24", "10.244.1.0") && has("10.244.1.0/24", "10.244.1.255"));
        assert!(!has("10.244.1.0/24", "10.244.2.0") && !has("10.244.1.0/24", "10.244.0.255"));
        assert!(has("10.244.1.7/32", "10.244.1.7") && !has("10.244.1.7/32", "10.244.1.6"));
        assert!(has("fd00:1:2::/48", "fd00:1:2:ffff::1") && !has("fd00:1:2::/48", "fd00:1:3::1"));
        assert!(has("fd00::1/128", "fd00::1") && !has("fd00::1/128", "fd00::2"));
        // Families are not mixed.
        assert!(!has("10.244.1.0/24", "fd00::1") && !has("fd00::/8", "10.244.1.1"));
    }

    #[test]
    fn what_is_no_range_or_every_address_is_none() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "fd00::/129",
            "10.0.0.0/0",
            "::/0",
            "a/8",
            "10.0.0.0/-1",
        ] {
            assert_eq!(Range::parse(text), None, "{text}");
        }
    }
}
