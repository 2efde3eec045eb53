//! An API server that takes requests and never answers them, and one that lists page by page.

use std::time::Duration;

use finial_tests::{Stack, wait_until};
use serde_json::json;

use super::kubernetes::{World, derived, pods_of};

/// Longer than any limit of a request and the pause after it.
const IN_THE_END: Duration = Duration::from_secs(120);

#[test]
fn after_watches_hung_in_their_beginning_everything_goes_on_by_itself() {
    let world = World::new();
    world.pod("a", "web", Some("n1"));
    let stack = Stack::server_only(world.options());
    wait_until("the entry of the pod", IN_THE_END, || {
        pods_of(&derived(&stack)) == 1
    });
    world.cluster.hang(true);
    world.cluster.break_watches();
    // Pods, nodes, namespaces, endpoints and the three kinds.
    wait_until("every watch to hang", IN_THE_END, || world.cluster.hung() >= 7);
    world.pod("b", "web", Some("n1"));
    world.cluster.delete("pods", "shop", "a");
    assert_eq!(pods_of(&derived(&stack)), 1, "what is known stays");
    world.cluster.hang(false);
    wait_until("the entry of the pod that came meanwhile", IN_THE_END, || {
        let entries = derived(&stack);
        let uid = world.cluster.get("pods", "shop", "b").expect("it was put")["metadata"]["uid"].clone();
        let selector = format!("pod-uid:{}", uid.as_str().unwrap_or_default());
        pods_of(&entries) == 1 && entries[0]["selectors"][0]["value"] == selector
    });
}

#[test]
fn after_lists_and_statuses_hung_everything_goes_on_by_itself() {
    let world = World::new();
    world.pod("a", "web", Some("n1"));
    world.cluster.hang(true);
    let stack = Stack::server_only(world.options());
    wait_until("the first lists to hang", IN_THE_END, || {
        world.cluster.hung() >= 7
    });
    world.cluster.hang(false);
    wait_until("the entry of the pod", IN_THE_END, || {
        pods_of(&derived(&stack)) == 1
    });
    let selected = |count: u8| {
        let rule = world.cluster.get("clusterspiffeids", "", "web");
        rule.unwrap_or_default()["status"]["stats"]["podsSelected"] == json!(count)
    };
    wait_until("the status of the rule", IN_THE_END, || selected(1));
    let before = world.cluster.hung();
    world.cluster.hang(true);
    // Open watches tell of it.
    world.pod("b", "web", Some("n1"));
    wait_until("the write of the status to hang", IN_THE_END, || {
        world.cluster.hung() > before
    });
    world.cluster.hang(false);
    wait_until("the status to be written after all", IN_THE_END, || selected(2));
}

#[test]
fn a_list_of_several_pages_is_taken_in_whole() {
    let world = World::new();
    let pod = |n: usize| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("p{n}"), "namespace": "shop", "labels": {"app": "web"}},
            "spec": {"serviceAccountName": "sa", "nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}
        })
    };
    world.cluster.put_all((0..1_234).map(pod).collect());
    let stack = Stack::server_only(world.options());
    wait_until("every entry", IN_THE_END, || pods_of(&derived(&stack)) == 1_234);
}
