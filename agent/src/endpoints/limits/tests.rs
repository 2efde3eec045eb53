use std::time::Duration;

use super::*;
use crate::workload::PodNumber;

const FETCH: &str = "/SpiffeWorkloadAPI/FetchX509SVID";

#[test]
fn one_user_gets_half_and_root_gets_all() {
    let admission = Admission::new(4);
    let mut admitted: Vec<_> = (0..2).map(|_| admission.admit(1000).unwrap()).collect();
    assert!(admission.admit(1000).is_none());
    admitted.push(admission.admit(1001).unwrap());
    admitted.push(admission.admit(0).unwrap());
    assert!(admission.admit(0).is_none(), "the limit holds for all");
    drop(admitted);
    let root: Vec<_> = (0..4).map(|_| admission.admit(0).unwrap()).collect();
    assert!(admission.admit(1002).is_none());
    drop(root);
    assert!(admission.shared.lock().connections.is_empty());
}

#[test]
fn one_container_gets_a_quarter_even_of_root() {
    let admission = Admission::new(8);
    for uid in [0, 1000] {
        let one: Vec<_> = (0..2)
            .map(|_| admission.admit(Who::within(uid, 7)).unwrap())
            .collect();
        assert!(admission.admit(Who::within(uid, 7)).is_none());
        assert!(admission.admit(Who::within(uid, 8)).is_some());
        drop(one);
    }
    let within: Vec<_> = (1..=4)
        .map(|ns| admission.admit(Who::within(1000, ns)).unwrap())
        .collect();
    assert!(
        admission.admit(Who::within(1000, 5)).is_none(),
        "namespaces that a user makes are still that user's"
    );
    drop(within);
    assert!(admission.shared.lock().connections.is_empty());
}

/// Pods of several tenants run as one user: none of them can use up what is another's.
#[tokio::test(start_paused = true)]
async fn each_pod_has_its_own_share_of_everything() {
    use futures_util::FutureExt as _;
    let limits = RateLimits {
        fetch_x509_svid: 4,
        ..RateLimits::default()
    };
    let admission = Admission::new(8).limited_to(limits);
    let pods = ["0", "1", "2", "3"].map(|digit| Who::Pod(PodNumber::parse(&digit.repeat(32)).unwrap()));
    let admitted = pods.map(|pod| {
        let two = [admission.admit(pod).unwrap(), admission.admit(pod).unwrap()];
        assert!(admission.admit(pod).is_none(), "a quarter");
        two
    });
    let mut held: Vec<(Vec<Turn>, Vec<AdmittedCall>)> = Vec::new();
    for [one, same] in &admitted {
        assert!((0..4).all(|_| one.call(FETCH).is_ok()));
        assert_eq!(same.call(FETCH).unwrap_err(), TooMany::OfMethod);
        let turn = |of: &Admitted| tokio::task::unconstrained(of.turn()).now_or_never();
        let turns = (0..TURNS).map(|_| turn(one).unwrap()).collect();
        assert!(turn(same).is_none());
        let signature = |of: &Admitted| tokio::task::unconstrained(of.signature()).now_or_never();
        assert!((0..500).all(|_| signature(one).is_some()));
        assert!(signature(same).is_none());
        let calls = (0..MAX_CALLS_PER_CONTAINER).map(|_| one.own_call()).collect();
        let open = same.call("/SpiffeWorkloadAPI/FetchJWTSVID");
        assert_eq!(open.unwrap_err(), TooMany::Open);
        held.push((turns, calls));
    }
}

#[test]
fn calls_are_counted_for_all_connections_of_a_user() {
    let admission = Admission::new(16);
    let (one, two) = (admission.admit(1000).unwrap(), admission.admit(1000).unwrap());
    let mut calls: Vec<_> = (0..MAX_CALLS_PER_USER).map(|_| one.own_call()).collect();
    assert_eq!(two.call(FETCH).unwrap_err(), TooMany::Open);
    assert!(two.is_idle() && !one.is_idle());
    assert!(admission.admit(1001).unwrap().call(FETCH).is_ok());
    calls.pop();
    assert!(two.call(FETCH).is_ok());
    let root = admission.admit(0).unwrap();
    let all: Result<Vec<_>, _> = (0..=MAX_CALLS_PER_USER).map(|_| root.call(FETCH)).collect();
    assert!(all.is_ok());
    let pod = admission.admit(Who::within(0, 7)).unwrap();
    let of_pod: Vec<_> = (0..MAX_CALLS_PER_CONTAINER).map(|_| pod.own_call()).collect();
    assert_eq!(pod.call(FETCH).unwrap_err(), TooMany::Open);
    assert!(admission.admit(Who::within(0, 8)).unwrap().call(FETCH).is_ok());
    drop((calls, all, of_pod));
    assert!(admission.shared.lock().calls.is_empty());
    assert!(one.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_user_that_calls_fast_is_not_refused_but_read_from_later_and_others_at_once() {
    let admission = Admission::new(16);
    let (one, other) = (admission.admit(1000).unwrap(), admission.admit(1001).unwrap());
    let root = admission.admit(0).unwrap();
    // A gateway that asks for a token with each of five thousand requests a second.
    for _second in 0..10 {
        for _call in 0..5000 {
            assert!(one.call(FETCH).is_ok());
            assert_eq!(one.used_up_until(Instant::now()), None);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    for caller in [&one, &root] {
        assert!((0..20_000).all(|_| caller.call(FETCH).is_ok()));
    }
    let wait = one.used_up_until(Instant::now()).unwrap() - Instant::now();
    assert!(
        wait > Duration::from_millis(900) && wait < Duration::from_millis(1100),
        "{wait:?}"
    );
    assert!(
        [&other, &root]
            .iter()
            .all(|caller| caller.used_up_until(Instant::now()).is_none())
    );
    tokio::time::advance(wait).await;
    assert_eq!(one.used_up_until(Instant::now()), None);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_does_not_take_no_for_an_answer_is_read_from_later() {
    let limits = RateLimits {
        fetch_x509_svid: 1,
        ..RateLimits::default()
    };
    let admission = Admission::new(64).limited_to(limits);
    let one = admission.admit(1000).unwrap();
    assert!(one.call(FETCH).is_ok());
    let refused = std::iter::repeat_with(|| one.call(FETCH).unwrap_err());
    let until_used_up = refused.take_while(|_| one.used_up_until(Instant::now()).is_none());
    assert_eq!(until_used_up.count(), 511);
}

#[tokio::test(start_paused = true)]
async fn each_broker_has_its_own_calls_and_connections() {
    let admission = Admission::for_brokers(4, 2);
    let (one, other) = (Who::Broker(0), Who::Broker(1));
    let held = [admission.admit(one).unwrap(), admission.admit(one).unwrap()];
    assert!(admission.admit(one).is_none());
    let other = admission.admit(other).unwrap();
    let calls: Vec<_> = (0..MAX_CALLS_PER_BROKER).map(|_| held[0].own_call()).collect();
    assert_eq!(held[1].call(FETCH).unwrap_err(), TooMany::Open);
    assert!(other.call(FETCH).is_ok());
    drop(calls);
    assert!((0..2048).all(|_| held[1].call(FETCH).is_ok()));
    assert!(held[1].used_up_until(Instant::now()).is_some());
    assert_eq!(other.used_up_until(Instant::now()), None);
    assert!(other.call(FETCH).is_ok());
}

#[tokio::test]
async fn a_user_gets_no_more_turns_by_making_namespaces() {
    use futures_util::FutureExt as _;
    let admission = Admission::new(4096);
    let turns_of = |uid| {
        let callers = (0..64).map(move |namespace| Who::within(uid, namespace));
        let callers: Vec<_> = callers.map(|who| admission.admit(who).unwrap()).collect();
        let turns = callers.iter().flat_map(|caller| (0..TURNS).map(move |_| caller));
        turns
            .filter_map(|caller| tokio::task::unconstrained(caller.turn()).now_or_never())
            .collect::<Vec<_>>()
            .len()
    };
    assert_eq!(turns_of(1000), TURNS_OF_ALL_CONTAINERS);
    assert_eq!(turns_of(0), 64 * TURNS);
}

#[tokio::test]
async fn a_caller_waits_for_its_own_turns_and_for_nobody_elses() {
    use futures_util::FutureExt as _;
    let admission = Admission::new(16);
    let (one, other) = (admission.admit(1000).unwrap(), admission.admit(1001).unwrap());
    let turns: Vec<_> = (0..TURNS).map(|_| one.turn().now_or_never().unwrap()).collect();
    assert!(one.turn().now_or_never().is_none());
    assert!(other.turn().now_or_never().is_some());
    drop(turns);
    assert!(one.turn().now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_configured_limit_holds_for_its_method_and_for_each_caller_root_included() {
    let limits = RateLimits {
        fetch_x509_svid: 2,
        ..RateLimits::default()
    };
    let admission = Admission::new(64).limited_to(limits);
    for who in [
        Who::from(0),
        Who::from(1000),
        Who::within(0, 7),
        Who::within(0, 8),
    ] {
        let admitted = admission.admit(who).unwrap();
        assert!(admitted.call(FETCH).is_ok() && admitted.call(FETCH).is_ok());
        assert_eq!(admitted.call(FETCH).unwrap_err(), TooMany::OfMethod, "{who:?}");
        assert!(admitted.call("/SpiffeWorkloadAPI/FetchJWTSVID").is_ok());
        tokio::time::advance(Duration::from_millis(500)).await;
        assert!(admitted.call(FETCH).is_ok());
    }
    use finial_identity::metrics::{Exposition, Polled};
    let shown = Exposition::default().render(metrics(), Polled::default());
    assert!(
        shown.contains("workload_api_rate_limit_exceeded{method=\"_SpiffeWorkloadAPI_FetchX509SVID\"} "),
        "{shown}"
    );
}

#[test]
fn the_limit_follows_the_number_of_files() {
    assert_eq!(Admission::for_open_files(1024).shared.limit, 448);
    assert_eq!(Admission::for_open_files(10).shared.limit, 16);
    assert_eq!(Admission::for_open_files(u64::MAX).shared.limit, MAX_CONNECTIONS);
}

#[test]
fn the_admin_socket_leaves_most_files_to_workloads() {
    for files in [1024, 4096, 1 << 20] {
        let share = SocketShare::of_open_files(files);
        assert!(share.files() * 4 < files, "{share:?} of {files}");
    }
    let share = SocketShare::of_open_files(1024);
    assert_eq!(
        (share.connections, share.processes, share.files()),
        (32, 128, 192)
    );
    let most = SocketShare::of_open_files(u64::MAX);
    assert_eq!((most.connections, most.processes), (256, 4096));
}
