use super::*;

fn map(text: &str) -> Vec<(String, Node)> {
    match parse(text) {
        Ok(Node {
            value: Value::Map(entries),
            ..
        }) => entries,
        other => panic!("{text:?}: {other:?}"),
    }
}

fn value(text: &str) -> Value {
    map(&format!("k = {text}")).remove(0).1.value
}

fn string(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn error(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn blocks_maps_commas_and_lines_mean_the_same() {
    let forms = [
        "a {\n b {\n c = 1\n d = \"x\"\n }\n}\n",
        "a { b { c = 1 d = \"x\" } }",
        "a { b { c = 1, d = \"x\", }, }",
        "a = { b = { c = 1\n d = \"x\" } }",
        "\"a\" { \"b\" = { \"c\" = 1, \"d\" = \"x\" } }",
        "a b { c = 1 d = \"x\" }",
        "a \"b\"\r\n{ # comment\r\n c = 1 // comment\r\n /* and\n one */ d = \"x\" }",
    ];
    for form in forms {
        assert_eq!(parse(form).unwrap(), parse(forms[0]).unwrap(), "{form}");
    }
}

#[test]
fn labels_become_maps_and_repeated_blocks_keep_their_order() {
    let plugins = map("NodeAttestor \"join_token\" { plugin_data {} }\nNodeAttestor \"k8s_psat\" {}\nz = 1");
    let names: Vec<_> = plugins.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(names, ["NodeAttestor", "NodeAttestor", "z"]);
    assert_eq!(plugins[0].1, parse("join_token { plugin_data = {} }").unwrap());
    assert_eq!(plugins[1].1, parse("k8s_psat = {}").unwrap());
    assert_eq!(map("a b \"c\" {}")[0].1, parse("b { c {} }").unwrap());
}

#[test]
fn numbers_keep_their_text() {
    for text in ["0", "8081", "-12", "0600", "0x1F", "1.5", "1e5", "1.5e-3", "2E+4"] {
        assert_eq!(value(text), Value::Number(text.to_owned()));
    }
    assert_eq!(map("a = 1,b = 2").len(), 2);
    for text in ["1h", "1.2.3", "0x", "1_000", "-", "-x", "10.0.0.1"] {
        assert!(
            error(&format!("k = {text}")).contains("is not a number"),
            "{text}"
        );
    }
}

#[test]
fn lists_may_end_with_a_comma_and_hold_anything() {
    let Value::List(items) = value("[1, \"a\", true, {b = 2}, [3],\n # last\n]") else {
        panic!("a list")
    };
    assert_eq!(items.len(), 5);
    assert_eq!(items[3], parse("b = 2").unwrap());
    assert_eq!(value("[]"), Value::List(Vec::new()));
    assert_eq!(
        error("k = [1 2]"),
        "line 1, column 8: comma or the end of the list expected"
    );
    assert_eq!(error("k = [,]"), "line 1, column 6: value expected, found ','");
    assert_eq!(error("k = [1,\n"), "line 1, column 5: list is not closed");
}

#[test]
fn strings_have_the_escapes_of_go() {
    let text = r#""a\"b\\c\n\t\x41\101\u00e9\U0001F600é""#;
    assert_eq!(value(text), string("a\"b\\c\n\tAAé😀é"));
    assert_eq!(
        value(r#""${env["HOME"]} {x} $y""#),
        string("${env[\"HOME\"]} {x} $y")
    );
    for bad in [
        r#""\q""#,
        r#""\u12""#,
        r#""\ud800""#,
        r#""\x4""#,
        r#""\400""#,
        r#""\19""#,
        "\"\\",
    ] {
        assert_eq!(
            error(&format!("k = {bad}")),
            "line 1, column 6: unknown escape in string",
            "{bad}"
        );
    }
    assert_eq!(error(r#"k = "\xff""#), "line 1, column 5: string is not UTF-8");
    assert_eq!(
        error("a = 1\nk = \"x\ny\""),
        "line 2, column 5: string is not closed"
    );
    assert_eq!(error("k = \"${x"), "line 1, column 5: string is not closed");
}

#[test]
fn heredocs_keep_their_lines() {
    assert_eq!(value("<<EOF\none\n  EOF\nEOF\nz = 1"), string("one\n  EOF\n"));
    assert_eq!(
        value("<<-EOF\n    one\n      two\n    EOF\n"),
        string("one\n  two\n")
    );
    assert_eq!(value("<<-EOF\n  one\n two\n  EOF"), string("  one\n two\n"));
    assert_eq!(value("<<A\nA"), string(""));
    assert_eq!(value("<<EOF\r\nx\r\nEOF\r\n"), string("x\r\n"));
    assert_eq!(map("k = <<EOF\nx\nEOF\nz = 1").len(), 2);
    assert_eq!(
        error("k = <<EOF\nx\n EOF\n"),
        "line 1, column 5: text up to EOF is not closed"
    );
    assert!(error("k = <<\nx").contains("a word and the end of the line expected"));
    assert!(error("k = <EOF").contains("found '<'"));
}

#[test]
fn errors_say_where() {
    assert_eq!(
        error("a = 1\nb {\n c = 2\n"),
        "line 2, column 3: block is not closed"
    );
    assert_eq!(error("a = 1\n}"), "line 2, column 1: key expected, found '}'");
    assert_eq!(
        error("a = 1\n  bare\n"),
        "line 2, column 3: neither `=` with a value nor a block follows: bare"
    );
    assert_eq!(
        error("a b = 1"),
        "line 1, column 1: neither `=` with a value nor a block follows: a"
    );
    assert_eq!(
        error("a = yes"),
        "line 1, column 5: value expected, strings need quotes: yes"
    );
    assert_eq!(
        error("a: 1"),
        "line 1, column 1: neither `=` with a value nor a block follows: a"
    );
    assert_eq!(error("a ="), "line 1, column 4: value expected, found the end");
    assert_eq!(error("\"\" = 1"), "line 1, column 1: key is empty");
    assert_eq!(
        error("a = 1,, b = 2"),
        "line 1, column 7: key expected, found ','"
    );
    assert_eq!(error("/* open"), "line 1, column 1: comment is not closed");
    assert_eq!(error("é = ;"), "line 1, column 5: value expected, found ';'");
}

#[test]
fn limits_depth_of_blocks_lists_and_labels() {
    assert!(
        parse(&format!(
            "{}{}",
            "a {".repeat(MAX_DEPTH - 1),
            "}".repeat(MAX_DEPTH - 1)
        ))
        .is_ok()
    );
    for text in [
        format!("{}{}", "a {".repeat(100_000), "}".repeat(100_000)),
        format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000)),
        format!("a = {}{}", "[{ a = ".repeat(100_000), "}]".repeat(100_000)),
        format!("{} {{}}", "a ".repeat(100_000)),
    ] {
        assert!(parse(&text).is_err());
    }
}

#[test]
fn places_are_those_of_the_keys() {
    let entries = map("a = 1\n\n  block \"label\" {\n    key = [\n      2]\n  }");
    assert_eq!(entries[1].1.at, Position { line: 3, column: 3 });
    let Value::Map(labels) = &entries[1].1.value else {
        panic!("a map")
    };
    assert_eq!(labels[0].1.at, Position { line: 3, column: 9 });
    let Value::Map(inner) = &labels[0].1.value else {
        panic!("a map")
    };
    assert_eq!(inner[0].1.at, Position { line: 4, column: 5 });
    let Value::List(items) = &inner[0].1.value else {
        panic!("a list")
    };
    assert_eq!(items[0].at, Position { line: 5, column: 7 });
}
