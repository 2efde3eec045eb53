//! Writes the corpus: `cargo test -p finial-tests --test corpus -- --ignored`. Keys are new each time, so the files
//! of one run belong together; inputs that the fuzzer found are kept in the same folders and are not changed.

mod discovery;
mod messages;
mod signed;

use std::fs;

use data_encoding::BASE64;
use finial_identity::key::{PrivateKey, pem_block};
use serde_json::{Value, json};

use self::messages::{documents, messages};
use self::signed::{Keys, certificates, keys, requests, self_signed, tokens, wit_tokens};

#[test]
#[ignore = "writes files into the source tree"]
fn write_the_corpus() {
    texts();
    settings();
    let keys = keys();
    certificates(&keys);
    requests(&keys);
    tokens(&keys);
    wit_tokens();
    documents(&keys);
    messages(&keys);
    discovery::streams();
    connections();
    agent_files(&keys);
}

fn put(target: &str, name: &str, bytes: impl AsRef<[u8]>) {
    let folder = super::corpus().join(target);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), bytes).unwrap();
}

fn texts() {
    let long = format!("spiffe://example.org/{}", "a".repeat(2048 - 21));
    for (name, text) in [
        ("plain", "spiffe://example.org/ns/prod/sa/db"),
        ("trust_domain", "spiffe://example.org"),
        ("bare_name", "a.b-c_d.example"),
        (
            "agent",
            "spiffe://example.org/spire/agent/join_token/0f8b1c1e-7a52-4d43-9f4e-0d2d5e0a7a11",
        ),
        ("longest", &long),
        ("upper_case_scheme", "SPIFFE://example.org/a"),
        ("upper_case_name", "spiffe://Example.org/a"),
        ("trailing_slash", "spiffe://example.org/a/"),
        ("empty_segment", "spiffe://example.org//a"),
        ("dot_segments", "spiffe://example.org/a/../b/./c"),
        ("percent", "spiffe://example.org/%61"),
        ("port", "spiffe://example.org:8443/a"),
        ("user", "spiffe://me@example.org/a"),
        ("query", "spiffe://example.org/a?b#c"),
        ("not_ascii", "spiffe://exämple.org/ö"),
        ("no_name", "spiffe:///a"),
    ] {
        put("spiffe_id", name, text);
    }
    put(
        "selector",
        "plain",
        "unix:uid:1000\nk8s:ns:prod\nk8s:pod-label:app:db\nunix:uid:1000\n",
    );
    put(
        "selector",
        "odd",
        "nocolon\n:empty\nempty:\na::b\n\u{2603}:\u{2603}\na:b:c\r\nx: \n",
    );
    put(
        "entry",
        "dns_names",
        "db.example.org\n*.example.org\nlocalhost\na_b.example\nxn--mnchen-3ya.de\n0.0.0.0\n",
    );
    put(
        "entry",
        "odd_names",
        "*.*.a\na.*.b\nA.example\na..b\n-a.b\nmünchen.de\nxn--a.b\na.b.\n.a\n*\n*.\na b\n",
    );
    put(
        "entry",
        "long_names",
        format!("{0}.{0}.{0}.{0}\n{0}a.b\n{1}\n", "a".repeat(63), "b".repeat(254)),
    );
}

fn settings() {
    let hcl = "# a comment\nserver {\n  bind_port = \"8081\"\n  trust_domain = \"example.org\"\n  ratelimit { attestation = true }\n  \
               mode = 0600, list = [\"a\", 1, true,]\n}\nplugins {\n  KeyManager \"disk\" { plugin_data { keys_path = \"./k\" } }\n  \
               NodeAttestor \"k8s_psat\" { plugin_data = { clusters = { \"c\" = { audience = [] } } } }\n}\n";
    put("settings_hcl", "plain", hcl);
    put(
        "settings_hcl",
        "odd",
        "a=1 b=-0x1F c=1e9 \"d\"=<<EOF\nx ${y}\nEOF\ne=<<-E\n  a\n   b\n  E\n/* c */ f \"g\" \"h\" { i=\"\\u00e9\\n\" }\n",
    );
    put("settings_hcl", "broken", "a = [\nb {\n c = \"${\"x\"}\"\n}");
    put(
        "settings_hcl",
        "deep",
        format!("{}1{}", "a { b = [".repeat(90), "] }".repeat(90)),
    );
    put(
        "settings_hcl",
        "is_json",
        "{\"server\": [{\"a\": 1}, {\"a\": 2}]}",
    );
    put(
        "settings_json",
        "plain",
        r#"{"server":{"bind_port":8081,"b":[true,null,1.5e3,"\ud83d\ude00"]},"plugins":[{"KeyManager":[{"disk":{}}]}]}"#,
    );
    put("settings_json", "repeated_key", r#"{"a":1,"a":2}"#);
    put(
        "settings_json",
        "odd",
        "\u{feff}{\"a\": -0, \"b\": 1E400, \"\": \"\\u0000\", \"c\": [[[]]]} ",
    );
    put(
        "settings_json",
        "deep",
        format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200)),
    );
    put(
        "settings_yaml",
        "plain",
        "server:\n  bind_port: 8081\n  list: [a, 'b', \"c\\n\"]\nplugins:\n  - KeyManager: {disk: {plugin_data: {}}}\n",
    );
    put(
        "settings_yaml",
        "odd",
        "%YAML 1.2\n---\na: |\n  x\n   y\nb: >-\n  x\n  y\nc: ~\nd: 0o17\ne: .inf\nf: 1_000\ng: !!str 5\n\"h\": yes\n...\n",
    );
    put(
        "settings_yaml",
        "anchors",
        "a: &a {b: 1}\nc: *a\n<<: *a\n? [k]\n: v\n",
    );
    put(
        "settings_yaml",
        "bomb",
        "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]\n",
    );
    put("settings_yaml", "two_documents", "a: 1\n---\nb: 2\n");
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn connections() {
    let block = |authority: &str| {
        let mut block = b"\x83\x87\x84\x40\x0a:authority".to_vec();
        block.push(u8::try_from(authority.len()).unwrap());
        block.extend(authority.as_bytes());
        block
    };
    let connection = |frames: &[Vec<u8>]| {
        let start = [
            &[6, 9][..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            &frame(4, 0, 0, &[]),
        ]
        .concat();
        [start, frames.concat()].concat()
    };
    let path = block("/run/finial/agent.sock");
    let indexed = [b"\x82\x41\x05a%2Fb\x81".to_vec(), b"\x01\x01/\x11\x01/".to_vec()].concat();
    let (head, tail) = path.split_at(12);
    let padded = [vec![3], vec![0; 5], path.clone(), vec![0; 3]].concat();
    put(
        "authority",
        "raw_path",
        connection(&[frame(1, 5, 1, &path), frame(0, 1, 1, b"data")]),
    );
    put(
        "authority",
        "percent",
        connection(&[frame(1, 5, 1, &block("tmp%2Fa.sock"))]),
    );
    put(
        "authority",
        "indexed_names",
        connection(&[frame(1, 5, 1, &indexed)]),
    );
    put(
        "authority",
        "continued",
        connection(&[frame(1, 1, 1, head), frame(9, 4, 1, tail), frame(1, 5, 3, &path)]),
    );
    put(
        "authority",
        "padded_with_priority",
        connection(&[frame(1, 0x2d, 1, &padded)]),
    );
    put(
        "authority",
        "continued_elsewhere",
        connection(&[frame(1, 1, 1, head), frame(9, 4, 3, tail)]),
    );
    put(
        "authority",
        "good_name",
        connection(&[frame(1, 5, 1, &block("localhost:80"))]),
    );
    put(
        "authority",
        "large_frame",
        [connection(&[]), vec![0xff, 0xff, 0xff, 1, 4, 0, 0, 0, 1, 0x41]].concat(),
    );
    put(
        "authority",
        "not_http2",
        [&[0, 0][..], b"GET / HTTP/1.1\r\nHost: /a\r\n\r\n"].concat(),
    );
}

fn agent_files(keys: &Keys) {
    let pem = |key: &PrivateKey| BASE64.encode(self_signed(key).to_pem().as_bytes());
    let data = |svid: Value, bundle: Value| {
        json!({"svid": svid, "bundle": bundle, "reattestable": true, "bootstrap_use": 0,
               "bootstrap_start_time": "0001-01-01T00:00:00Z", "connection_attempts": 0})
        .to_string()
    };
    put(
        "agent_data",
        "plain",
        data(json!([pem(&keys.p256)]), json!([pem(&keys.p384)])),
    );
    put("agent_data", "nothing_yet", data(Value::Null, Value::Null));
    put(
        "agent_data",
        "not_pem",
        data(
            json!([BASE64.encode(pem_block("KEY", b"x").as_bytes())]),
            json!([]),
        ),
    );
    put("agent_data", "empty", "");

    let status =
        "Name:\tcat\nUmask:\t0022\nUid:\t1000\t1001\t1002\t1003\nGid:\t10\t11\t12\t13\nGroups:\t11 27 \n";
    let stat = "7 (a) b) S 1 7 7 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0 0";
    let users = "root:x:0:0::/:/bin/sh\n# comment\n+::::::\nme:x:1001:1::/:\nme2:x:1001:1::/:\n:x:5:\nbad\n";
    let join = |parts: [&str; 4]| parts.join("\0");
    put(
        "workload_files",
        "plain",
        join([status, stat, users, "wheel:x:11:me\nsudo:x:27:\n"]),
    );
    put(
        "workload_files",
        "no_groups",
        join(["Uid:\t1 2 3 4\nGid:\t5 6 7 8\n", "7 (x", "", "a:x:99999999999:\n"]),
    );
    put(
        "workload_files",
        "negative",
        join(["Uid:\t1 -2\nGid:\t\nGroups:\tx\n", "", ":::\n", "\n\n"]),
    );

    let server = "server {\n bind_address = \"127.0.0.1\"\n bind_port = \"8081\"\n trust_domain = \"example.org\"\n data_dir = \"./data\"\n \
                  ca_ttl = \"24h\"\n default_x509_svid_ttl = \"1h\"\n}\nplugins {\n DataStore \"sql\" { plugin_data { database_type = \"sqlite3\" \
                  connection_string = \"./d.sqlite3\" } }\n KeyManager \"disk\" { plugin_data { keys_path = \"./k.json\" } }\n \
                  NodeAttestor \"join_token\" { plugin_data {} }\n}\n";
    put("server_config", "plain", server);
    put(
        "server_config",
        "mistakes",
        "server { trust_domain = \"A\" bind_port = \"x\" ca_ttl = \"1\" nope = 1 }\nplugins { KeyManager \"x\" {} }\n",
    );
    let agent = "agent {\n data_dir = \"./data\"\n server_address = \"127.0.0.1\"\n server_port = \"8081\"\n socket_path = \"/run/finial/agent.sock\"\n \
                 trust_domain = \"example.org\"\n insecure_bootstrap = true\n join_token = \"t\"\n}\nplugins {\n NodeAttestor \"join_token\" { plugin_data {} }\n \
                 KeyManager \"memory\" { plugin_data {} }\n WorkloadAttestor \"unix\" { plugin_data {} }\n}\n";
    put("agent_config", "plain", agent);
    put(
        "agent_config",
        "mistakes",
        "agent { trust_domain = \"A\" server_port = 99999 sds { x = 1 } nope = 1 }\nplugins { WorkloadAttestor \"x\" {} }\n",
    );
    put(
        "helper_config",
        "plain",
        include_str!("../../../docs/samples/helper.conf"),
    );
    put(
        "helper_config",
        "mistakes",
        "svid_file_name = \"../a/b.pem\" svid_key_file_name = \"b.pem\" svid_bundle_file_name = \"/c/../b.pem\"\n\
         cmd = \"x\" cmd_args = \"a  \\\"b c\\\" \\\"d \\\"\\\"e\\\"\\\" \\\"\\r\\nf\" pid_file_name = \"p\" renew_signal = \"SIGRTMIN\"\n\
         cert_file_mode = 0x1ff key_file_mode = -1 jwt_svids { jwt_audience = \"a\" }\n",
    );
}
