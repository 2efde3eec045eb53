//! A complete Kubernetes (etcd, apiserver, kubelet, containerd, CNI) in separate Linux namespaces, started for these
//! tests by the scripts in this folder, and Finial in it as its chart installs it.
//!
//! `FINIAL_TEST_CLUSTER` names the folder that `tests/cluster/build` made. All tests share one cluster, because each
//! start costs about ten seconds of CPU; each works in a namespace (of Kubernetes) that it alone uses. What disturbs
//! others (restarts, changed values) is done in a second cluster.

mod attacks;
mod clients;
mod cluster;
mod csi;
mod door;
mod envoy;
mod federation;
mod helm;
mod identities;
mod installation;
mod kubelet;
mod member;
mod namespace_labels;
mod originals;
mod page;
mod readiness;
mod recovery;
mod release;
#[path = "../interop/session.rs"]
mod session;
mod several;
mod smoke;
mod turns;
mod why;
#[allow(dead_code, reason = "shared with the e2e suite, which uses the rest")]
#[path = "../e2e/wire.rs"]
mod wire;
mod workload;
