use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

fn pod() -> (Json, Json) {
    let meta = json!({
        "name": "web-7f", "namespace": "shop", "uid": "u-1", "generateName": "web-",
        "creationTimestamp": "2026-01-02T03:04:05Z",
        "labels": {"app": "web", "app.kubernetes.io/name": "shop-web", "b": "2"},
        "annotations": {"example.org/identity": "team/a"},
        "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "o-1", "controller": true},
            {"apiVersion": "v1", "kind": "Other", "name": "x", "uid": "o-2"}
        ]
    });
    let spec = json!({
        "serviceAccountName": "web-sa", "nodeName": "n1", "hostNetwork": true,
        "containers": [{"name": "app", "image": "img:1", "env": [{"name": "A", "value": "1"}]}, {"name": "side"}],
        "nodeSelector": {"disk": "ssd"}
    });
    (meta, spec)
}

fn render(source: &str) -> Result<String, String> {
    let (meta, spec) = pod();
    let template = Template::parse(source, Scope::Pod).map_err(|error| format!("parse: {error}"))?;
    let facts = Facts {
        trust_domain: "example.org",
        cluster_name: "demo",
        cluster_domain: "cluster.local",
        pod: Some((&meta, &spec)),
        node_meta: &json!({"name": "n1", "uid": "node-uid", "labels": {"zone": "a"}}),
        node_spec: &json!({"providerID": "aws:///i-1", "podCIDR": "10.0.0.0/24"}),
    };
    template.render(&facts).map_err(|error| error.to_string())
}

/// Each source with what Go's `text/template` makes of it.
#[test]
fn templates_render_as_in_go() {
    for (source, expected) in [
        ("", ""),
        ("plain", "plain"),
        (
            "spiffe://{{ .TrustDomain }}/ns/{{ .PodMeta.Namespace }}/sa/{{ .PodSpec.ServiceAccountName }}",
            "spiffe://example.org/ns/shop/sa/web-sa",
        ),
        ("{{.ClusterName}}.{{.ClusterDomain}}", "demo.cluster.local"),
        ("{{ .PodMeta.UID }} {{ .PodMeta.GenerateName }}", "u-1 web-"),
        (
            "{{ .PodMeta.CreationTimestamp }}",
            "2026-01-02 03:04:05 +0000 UTC",
        ),
        ("{{ .PodMeta.Labels.app }}", "web"),
        (
            "{{ index .PodMeta.Labels \"app.kubernetes.io/name\" }}",
            "shop-web",
        ),
        (
            "{{ index .PodMeta.Annotations \"example.org/identity\" }}",
            "team/a",
        ),
        (
            "a{{ .PodMeta.Labels.missing }}b{{ index .PodMeta.Annotations \"no\" }}c",
            "a<no value>bc",
        ),
        ("{{ $x := .PodMeta.Labels.zzz }}{{ $x }}", "<no value>"),
        ("{{ (.PodMeta.Labels.zzz) }}", "<no value>"),
        ("{{ if .PodMeta.Labels.zzz }}a{{ else }}b{{ end }}", "b"),
        ("{{ range .PodMeta.Labels.zzz }}a{{ else }}b{{ end }}", "b"),
        (
            "{{ eq .PodMeta.Labels.zzz \"\" }} {{ ne .PodMeta.Labels.zzz \"\" }} {{ eq .PodMeta.Labels.zzz .PodMeta.Labels.yyy }}",
            "false true true",
        ),
        (
            "{{ eq (index .PodMeta.Labels \"zzz\") \"\" }} {{ eq .PodMeta.Labels.zzz nil }} {{ eq .PodMeta.Name nil }}",
            "true true false",
        ),
        (
            "{{ print .PodMeta.Labels.zzz 1 }} {{ printf \"%v\" .PodMeta.Labels.zzz }} {{ .PodMeta.Labels.zzz | print }}",
            "<nil> 1 <nil> <nil>",
        ),
        (
            "{{ html .PodMeta.Labels.zzz }} {{ urlquery .PodMeta.Labels.zzz }} {{ println nil }}",
            "&lt;no value&gt; %3Cno+value%3E <nil>\n",
        ),
        ("{{ (index .PodMeta.OwnerReferences 0).Kind }}", "ReplicaSet"),
        (
            "{{ with index .PodMeta.OwnerReferences 0 }}{{ .APIVersion }}/{{ .UID }}{{ end }}",
            "apps/v1/o-1",
        ),
        ("{{ (index .PodSpec.Containers 0).Image }}", "img:1"),
        (
            "{{ range .PodSpec.Containers }}[{{ .Name }}]{{ end }}",
            "[app][side]",
        ),
        (
            "{{ range $i, $c := .PodSpec.Containers }}{{ if $i }},{{ end }}{{ $i }}={{ $c.Name }}{{ end }}",
            "0=app,1=side",
        ),
        (
            "{{ range $k, $v := .PodMeta.Labels }}{{ $k }}:{{ $v }};{{ end }}",
            "app:web;app.kubernetes.io/name:shop-web;b:2;",
        ),
        ("{{ range .PodMeta.Finalizers }}x{{ else }}none{{ end }}", "none"),
        ("{{ range .PodSpec.Containers }}{{ break }}{{ end }}ok", "ok"),
        (
            "{{ range .PodSpec.Containers }}{{ if eq .Name \"app\" }}{{ continue }}{{ end }}{{ .Name }}{{ end }}",
            "side",
        ),
        ("{{ range 3 }}{{ . }}{{ end }}", "012"),
        ("{{ .PodSpec.HostNetwork }}", "true"),
        ("{{ .PodSpec.HostPID }} {{ .PodSpec.HostIPC }}", "false false"),
        ("{{ (index .PodMeta.OwnerReferences 0).Controller }}", "true"),
        (
            "{{ if (index .PodMeta.OwnerReferences 1).Controller }}a{{ else }}b{{ end }}",
            "b",
        ),
        (
            "{{ .NodeMeta.Labels.zone }} {{ .NodeSpec.ProviderID }} {{ .NodeSpec.PodCIDR }}",
            "a aws:///i-1 10.0.0.0/24",
        ),
        (
            "{{ if eq .PodMeta.Namespace \"a\" \"shop\" }}y{{ else }}n{{ end }}",
            "y",
        ),
        ("{{ if ne .PodMeta.Namespace \"a\" }}y{{ end }}", "y"),
        (
            "{{ if and .PodMeta.Name (not .PodMeta.Labels.zzz) }}y{{ end }}",
            "y",
        ),
        ("{{ or .PodMeta.Labels.zzz .PodMeta.Labels.app }}", "web"),
        (
            "{{ and .PodMeta.Labels.zzz (index .PodMeta.OwnerReferences 99) }}",
            "<no value>",
        ),
        ("{{ if lt 1 2 }}{{ if ge \"b\" \"a\" }}y{{ end }}{{ end }}", "y"),
        (
            "{{ len .PodSpec.Containers }} {{ len .PodMeta.Name }} {{ len .PodMeta.Labels }}",
            "2 6 3",
        ),
        (
            "{{ slice .PodMeta.Name 0 3 }} {{ slice .PodMeta.Name 4 }}",
            "web 7f",
        ),
        (
            "{{ printf \"%s-%d-%q-%v-%t\" .PodMeta.Name 7 \"a\\\"b\" .PodMeta.Labels.b true }}",
            "web-7f-7-\"a\\\"b\"-2-true",
        ),
        (
            "{{ printf \"%05d|%-4s|%4s|%.2s|%x|%X%%\" 42 \"a\" \"b\" \"cde\" \"hi\" 255 }}",
            "00042|a   |   b|cd|6869|FF%",
        ),
        ("{{ print 1 2 \"a\" 3 }}", "1 2a3"),
        ("{{ println \"a\" 1 }}", "a 1\n"),
        ("{{ .PodMeta.Name | printf \"%s!\" }}", "web-7f!"),
        (
            "{{ \"a b&c\" | urlquery }} {{ html \"<a&'>\" }} {{ js \"it's <x>\" }}",
            "a+b%26c &lt;a&amp;&#39;&gt; it\\'s \\u003Cx\\u003E",
        ),
        (
            "{{ $x := .PodMeta.Name }}{{ $x }}/{{ $.PodMeta.Namespace }}",
            "web-7f/shop",
        ),
        (
            "{{ $x := \"a\" }}{{ if true }}{{ $x = \"b\" }}{{ end }}{{ $x }}",
            "b",
        ),
        (
            "{{ $x := \"a\" }}{{ if true }}{{ $x := \"b\" }}{{ end }}{{ $x }}",
            "a",
        ),
        ("{{ with $l := .PodMeta.Labels.app }}{{ $l }}{{ end }}", "web"),
        (
            "{{ with .PodMeta.Labels.no }}a{{ else with .PodMeta.Labels.b }}{{ . }}{{ else }}c{{ end }}",
            "2",
        ),
        ("{{ if false }}a{{ else if true }}b{{ else }}c{{ end }}", "b"),
        ("a \n {{- \" b\" -}} \n c", "a bc"),
        ("a {{- /* note */ -}} b", "ab"),
        ("a{{/* note */}}b", "ab"),
        ("{{ `raw\\n` }}{{ \"\\u00e9\\x41\\n\" }}", "raw\\néA\n"),
        (
            "{{ .PodMeta.Labels }}",
            "map[app:web app.kubernetes.io/name:shop-web b:2]",
        ),
        (
            "{{ index .PodMeta.Name 0 }} {{ 'a' }} {{ -3 }} {{ 0x10 }}",
            "119 97 -3 16",
        ),
        ("{{ eq .PodMeta.UID \"u-1\" }}", "true"),
        ("}} { {", "}} { {"),
    ] {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }
}

/// Refused when the rule is admitted, each with a word that says why.
#[test]
fn what_is_not_known_is_refused_at_parsing() {
    for (source, part) in [
        (
            "{{ .PodMeta.Nam }}",
            "can't evaluate field Nam in type ObjectMeta",
        ),
        ("{{ .Pod }}", "no such fact"),
        ("{{ .PodSpec.Volumes }}", "Volumes"),
        (
            "{{ range .PodSpec.Containers }}{{ .Foo }}{{ end }}",
            "Foo in type Container",
        ),
        (
            "{{ with .NodeMeta }}{{ .PodCIDR }}{{ end }}",
            "PodCIDR in type ObjectMeta",
        ),
        (
            "{{ range $c := .PodSpec.Containers }}{{ $c.X }}{{ end }}",
            "X in type Container",
        ),
        ("{{ .PodMeta.Name.X }}", "field X"),
        ("{{ .PodMeta }}", "cannot be written"),
        ("{{ . }}", "cannot be written"),
        ("{{ lower .PodMeta.Name }}", "function \"lower\" not defined"),
        (
            "{{ .PodMeta.Name | replace \"a\" }}",
            "function \"replace\" not defined",
        ),
        ("{{ $x }}", "undefined variable"),
        (
            "{{ if true }}{{ $x := 1 }}{{ end }}{{ $x }}",
            "undefined variable",
        ),
        ("{{ $x = 1 }}", "undefined variable"),
        ("{{ if }}{{ end }}", "missing value"),
        ("{{ }}", "missing value"),
        ("{{ if true }}", "{{end}} is missing"),
        ("{{ end }}", "unexpected {{end}}"),
        ("{{ else }}", "unexpected {{else}}"),
        ("{{ break }}", "outside"),
        ("{{ .PodMeta.Name", "unclosed action"),
        ("a\n{{ \"a }}", "line 2"),
        ("{{ (len \"a\" }}", "unclosed left parenthesis"),
        ("{{ len \"a\") }}", "unexpected"),
        ("{{ not }}", "wrong number of args"),
        ("{{ 1 2 }}", "can't give argument to non-function"),
        ("{{ 1 | 2 }}", "non executable command"),
        ("{{ nil }}", "nil is not a command"),
        ("{{ \"a\"\"b\" }}", "space between"),
        ("{{ template \"x\" }}", "not known"),
        ("{{ define \"x\" }}{{ end }}", "not known"),
        ("{{ call .PodMeta.Name }}", "nothing to call"),
        ("{{ printf \"%z\" 1 }}", "verb %z"),
        ("{{ printf \"%99999d\" 1 }}", "width"),
        ("{{ 1.5 }}", "bad number"),
        ("{{ /* a }}", "unclosed comment"),
        ("{{ # }}", "unexpected character"),
    ] {
        let error = render(source).unwrap_err();
        assert!(
            error.starts_with("parse: ") && error.contains(part),
            "{source}: {error}"
        );
    }
}

#[test]
fn a_parent_id_is_about_a_node() {
    assert!(Template::parse("{{ .NodeMeta.UID }}", Scope::Node).is_ok());
    let error = Template::parse("{{ .PodMeta.Name }}", Scope::Node).unwrap_err();
    assert!(error.to_string().contains("about a node"), "{error}");
}

#[test]
fn facts_that_do_not_fit_are_an_error_of_rendering() {
    for (source, part) in [
        (
            "{{ (index .PodMeta.OwnerReferences 7).Kind }}",
            "index out of range",
        ),
        ("{{ if eq .PodMeta.Name 1 }}{{ end }}", "incompatible types"),
        ("{{ printf \"%d\" .PodMeta.Name }}", "cannot take"),
        ("{{ printf \"%s\" }}", "missing argument"),
        ("{{ printf \"%s\" .PodMeta.Labels.zzz }}", "cannot take"),
        ("{{ len .PodMeta.Labels.zzz }}", "len of"),
        ("{{ slice .PodMeta.Labels.zzz 1 }}", "can't slice"),
        ("{{ lt .PodMeta.Labels.zzz \"a\" }}", "incompatible types"),
        ("{{ index .PodMeta.Labels .PodMeta.Labels.zzz }}", "can't index"),
        ("{{ range .PodMeta.Name }}{{ end }}", "can't iterate"),
        ("{{ slice .PodMeta.Name 5 2 }}", "invalid slice index"),
        ("{{ index .PodMeta.Labels 1 }}", "can't index"),
    ] {
        let error = render(source).unwrap_err();
        assert!(
            !error.starts_with("parse") && error.contains(part),
            "{source}: {error}"
        );
    }
}

#[test]
fn loops_output_and_depth_are_bounded() {
    let loops = "{{ range 1000 }}{{ range 1000 }}{{ end }}{{ end }}";
    assert!(render(loops).unwrap_err().contains("steps"));
    assert!(
        render("{{ range 99999999 }}{{ end }}")
            .unwrap_err()
            .contains("steps")
    );
    let long = format!("{{{{ range 100 }}}}{}{{{{ end }}}}", "x".repeat(1000));
    assert!(render(&long).unwrap_err().contains("longer than"));
    let deep = "{{ if true }}".repeat(100) + &"{{ end }}".repeat(100);
    assert!(render(&deep).unwrap_err().contains("nested deeper"));
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(100), ")".repeat(100));
    assert!(render(&deep).unwrap_err().contains("nested deeper"));
    let source = "x".repeat(MAX_SOURCE + 1);
    assert!(render(&source).unwrap_err().contains("longer than"));
    let doubling = "{{ $x := \"aaaaaaaa\" }}".to_owned() + &"{{ $x = print $x $x }}".repeat(40);
    assert!(render(&doubling).unwrap_err().contains("longer than"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_template_of_literals_renders_as_itself(text in "[^{]{0,200}") {
        prop_assert_eq!(render(&text), Ok(text));
    }

    #[test]
    fn a_quoted_literal_renders_as_its_text(text in "[^\"\\\\\n]{0,80}") {
        prop_assert_eq!(render(&format!("{{{{ \"{text}\" }}}}")), Ok(text));
    }

    #[test]
    fn nothing_makes_the_engine_panic(source in "(\\{\\{|\\}\\}|if|range|end|else|with|\\$x|:=|=|,|\\.PodMeta|\\.Labels|index|printf|\"%s\"|\\(|\\)|\\||-| |[a-z\"`'.0-9\\\\é]){0,40}") {
        // Whatever comes of it, it comes as a result.
        let _ = render(&source);
    }
}
