use super::*;
use crate::settings::{Document, Format};

/// What `read` returns, and all problems, one a line.
fn read<T>(text: &str, read: impl FnOnce(&Section<'_>) -> T) -> (T, String) {
    let format = if text.starts_with("---") {
        Format::Yaml
    } else {
        Format::Hcl
    };
    let document = Document::parse(text, format).unwrap();
    let problems = Problems::new();
    let section = document.section(&problems);
    let value = read(&section);
    section.finish();
    (
        value,
        problems
            .into_result()
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default(),
    )
}

fn none() -> String {
    String::new()
}

#[test]
fn reads_scalars_also_as_strings() {
    let text = r#"
            bind_port = "8081"  other_port = 8082  mode = 0600  count = -5  on = true  off = "false"
            ttl = "1h30m"  name = "x"  code = 42  hex = "0xff"
        "#;
    let (_, problems) = read(text, |s| {
        assert_eq!(
            (s.u16("bind_port"), s.u16("other_port")),
            (Some(8081), Some(8082))
        );
        assert_eq!(
            (s.u32("mode"), s.i64("count"), s.usize("hex")),
            (Some(0o600), Some(-5), Some(255))
        );
        assert_eq!((s.bool("on"), s.bool("off")), (Some(true), Some(false)));
        assert_eq!(s.duration("ttl"), Some(Duration::from_secs(5400)));
        assert_eq!(s.string("name").as_deref(), Some("x"));
        assert_eq!(s.string("CODE").as_deref(), Some("42"));
    });
    assert_eq!(problems, none());
}

#[test]
fn empty_and_null_count_as_not_set() {
    let ((), problems) = read("---\na: ''\nb: null\nc: []\nd: ~\ne: ''\nf:\ng: ''", |s| {
        assert_eq!(
            (s.string("a"), s.string("b"), s.string("absent")),
            (None, None, None)
        );
        assert_eq!((s.strings("c"), s.strings("d")), (vec![], vec![]));
        assert_eq!(
            (s.duration("e"), s.u16("g"), s.bool("absent")),
            (None, None, None)
        );
        assert!(s.section("f").is_none());
        assert!(s.sections("f").is_empty());
    });
    assert_eq!(problems, none());
}

#[test]
fn every_mistake_is_reported_with_path_and_line() {
    let text = "agent {\n trust_domain = []\n port = 70000\n n = \"ten\"\n on = \"yes\"\n ttl = \"-1s\"\n\
                    list = \"a\"\n items = [\"ok\", true]\n sub = 3\n}";
    let (_, problems) = read(text, |s| {
        let agent = s.required_section("agent").unwrap();
        assert!(agent.required_string("trust_domain").is_none());
        assert!(agent.u16("port").is_none() && agent.i64("n").is_none() && agent.bool("on").is_none());
        assert!(agent.duration("ttl").is_none() && agent.strings("list").is_empty());
        assert_eq!(agent.strings("items"), ["ok"]);
        assert!(agent.section("sub").is_some());
        assert!(agent.required_string("data_dir").is_none());
        assert!(agent.required_section("experimental").is_none());
        agent.problem("ttl", "is shorter than the heartbeat");
        agent.finish();
    });
    assert_eq!(
        problems,
        "agent.data_dir (line 1): is required\n\
             agent.experimental (line 1): is required\n\
             agent.trust_domain (line 2): must be a string, is a list\n\
             agent.port (line 3): is out of range: 70000\n\
             agent.n (line 4): must be a whole number: ten\n\
             agent.on (line 5): must be true or false, is a string\n\
             agent.ttl (line 6): must not be negative: -1s\n\
             agent.ttl (line 6): is shorter than the heartbeat\n\
             agent.list (line 7): must be a list of strings, is a string\n\
             agent.items[1] (line 8): must be a string, is a boolean\n\
             agent.sub (line 9): must be a block, is a number"
    );
}

#[test]
fn unknown_keys_are_reported_with_what_was_probably_meant() {
    let text = "server {\n trust_domian = \"x\"\n colour = 1\n}\nplugin {}";
    let (_, problems) = read(text, |s| {
        let server = s.section("server").unwrap();
        server.string("trust_domain");
        server.ignore("profiling_names");
        server.finish();
        s.section("plugins");
    });
    assert_eq!(
        problems,
        "unknown configuration detected\n\
             server.trust_domian (line 2): unknown key, did you mean `trust_domain`?\n\
             server.colour (line 3): unknown key\n\
             plugin (line 5): unknown key, did you mean `plugins`?"
    );
}

#[test]
fn labelled_blocks_are_the_same_in_every_form() {
    let forms = [
        "WA \"k8s\" { plugin_data { a = 1 } }\nWA \"unix\" {}",
        "WA { k8s { plugin_data = { a = 1 } } unix {} }",
        "WA = [{ k8s = { plugin_data = { a = 1 } } }, { unix = {} }]",
        r#"{"WA": [{"k8s": [{"plugin_data": [{"a": 1}]}]}, {"unix": {}}]}"#,
        "---\nWA:\n- k8s:\n    plugin_data: {a: 1}\n- unix:\n",
        "---\nWA:\n  k8s:\n    plugin_data: {a: 1}\n  unix: {}\n",
    ];
    for form in forms {
        let ((), problems) = read(form, |s| {
            let mut found = s.labelled("WA");
            let labels: Vec<_> = found.iter().map(|(label, _)| label.as_str()).collect();
            assert_eq!(labels, ["k8s", "unix"], "{form}");
            let (_, k8s) = found.remove(0);
            let data = k8s.section("plugin_data").unwrap();
            assert_eq!(data.path(), "WA \"k8s\".plugin_data");
            assert_eq!(data.u16("a"), Some(1), "{form}");
            data.finish();
            k8s.finish();
        });
        assert_eq!(problems, none(), "{form}");
    }
}

#[test]
fn a_label_without_a_block_is_a_problem() {
    let (labels, problems) = read("WA = \"unix\"\nKM { disk = 1 }", |s| {
        (s.labelled("WA").len(), s.labelled("KM").len())
    });
    assert_eq!(labels, (0, 1));
    assert_eq!(
        problems,
        "WA (line 1): must be a block, is a string\nKM \"disk\" (line 2): must be a block, is a number"
    );
}

#[test]
fn repeated_blocks_add_up_and_repeated_keys_are_a_problem() {
    let text = "server { a = 1 }\nserver { b = 2\n b = 3 }";
    let ((), problems) = read(text, |s| {
        let server = s.section("server").unwrap();
        assert_eq!(server.u16("a"), Some(1));
        assert_eq!(server.u16("b"), None);
        server.finish();
    });
    assert_eq!(problems, "server.b (line 3): is set before, in line 2");
    let (addresses, problems) = read(
        "Statsd { address = \"a\" }\nStatsd = [{ address = \"b\" }]",
        |s| {
            let sections = s.sections("Statsd");
            assert_eq!(sections[1].path(), "Statsd[1]");
            sections
                .iter()
                .filter_map(|section| section.string("address"))
                .collect::<Vec<_>>()
        },
    );
    assert_eq!(
        (addresses, problems),
        (vec!["a".to_owned(), "b".to_owned()], none())
    );
}

#[test]
fn parse_tells_the_error_of_the_reader() {
    let text = "level = \"loud\"\nids = [\"1\", \"x\", \"3\"]";
    let (ids, problems) = read(text, |s| {
        let level = s.required_parse("level", |text| Err::<(), _>(format!("is not a level: {text}")));
        assert!(level.is_none());
        assert!(s.required_parse("format", str::parse::<u8>).is_none());
        s.parse_each("ids", str::parse::<u8>)
    });
    assert_eq!(ids, [1, 3]);
    assert_eq!(
        problems,
        "level (line 1): is not a level: loud\nformat (line 1): is required\n\
             ids[1] (line 2): invalid digit found in string"
    );
}

#[test]
fn integers_have_the_bases_of_go() {
    let cases = [
        ("0", 0),
        ("00", 0),
        ("0600", 384),
        ("-0x10", -16),
        ("0b11", 3),
        ("0O17", 15),
        ("+7", 7),
    ];
    for (text, number) in cases {
        assert_eq!(parse_integer(text), Some(number), "{text}");
    }
    for text in [
        "", "-", "0x", "08", "--1", "0x-1", "1.5", "1e3", "ten", "1_000", " 1",
    ] {
        assert_eq!(parse_integer(text), None, "{text}");
    }
    assert_eq!(parse_integer(&"9".repeat(60)), None);
}

#[test]
fn has_tells_without_reading_and_nodes_gives_what_was_written() {
    let ((), problems) = read("a = 1\nb { c = 2 }", |s| {
        assert!(s.has("A") && !s.has("z"));
        assert_eq!(s.nodes("b").len(), 1);
    });
    assert_eq!(
        problems,
        "unknown configuration detected\na (line 1): unknown key"
    );
}
