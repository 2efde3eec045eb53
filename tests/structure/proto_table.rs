//! The compiled schema is, fact for fact, the table in `proto_fields.txt`: services, methods with their
//! streams, fields with number, label, type and oneof, enum values.

use std::collections::BTreeSet;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, ServiceDescriptorProto,
};

const TABLE: &str = include_str!("proto_fields.txt");

#[test]
fn schema_is_the_table_of_the_protocols() {
    let differences = differences(&schema(), TABLE);
    for difference in &differences {
        println!("{difference}");
    }
    assert!(
        differences.is_empty(),
        "{} differences, printed above",
        differences.len()
    );
}

#[test]
fn every_own_file_is_proto3() {
    for file in own_files(&schema()) {
        assert_eq!(file.syntax(), "proto3", "{}", file.name());
    }
}

#[test]
fn reports_a_changed_field_number() {
    let mut set = schema();
    field_mut(&mut set, "Entry", "hint").number = Some(17);
    assert_eq!(
        differences(&set, TABLE),
        [
            "only in the schema: field spire.api.types.Entry 17 hint string",
            "only in the table: field spire.api.types.Entry 14 hint string",
        ]
    );
}

#[test]
fn reports_a_changed_type_label_and_oneof() {
    let mut set = schema();
    field_mut(&mut set, "Bundle", "sequence_number").set_type(Type::Int64);
    field_mut(&mut set, "Entry", "dns_names").set_label(Label::Optional);
    field_mut(&mut set, "FederationRelationship", "https_web").oneof_index = None;
    assert_eq!(
        differences(&set, TABLE),
        [
            "only in the schema: field spire.api.types.Bundle 5 sequence_number int64",
            "only in the schema: field spire.api.types.Entry 10 dns_names string",
            "only in the schema: field spire.api.types.FederationRelationship 3 https_web spire.api.types.HTTPSWebProfile",
            "only in the table: field spire.api.types.Bundle 5 sequence_number uint64",
            "only in the table: field spire.api.types.Entry 10 dns_names repeated string",
            "only in the table: field spire.api.types.FederationRelationship 3 https_web spire.api.types.HTTPSWebProfile oneof bundle_endpoint_profile",
        ]
    );
}

#[test]
fn reports_a_missing_method_and_a_lost_stream() {
    let mut set = schema();
    let file = set
        .file
        .iter_mut()
        .find(|file| file.package().is_empty())
        .unwrap();
    let methods = &mut file.service[0].method;
    methods.retain(|method| method.name() != "ValidateJWTSVID");
    methods
        .iter_mut()
        .find(|method| method.name() == "FetchX509SVID")
        .unwrap()
        .server_streaming = None;
    assert_eq!(
        differences(&set, TABLE),
        [
            "only in the schema: rpc SpiffeWorkloadAPI/FetchX509SVID (X509SVIDRequest) returns (X509SVIDResponse)",
            "only in the table: rpc SpiffeWorkloadAPI/FetchX509SVID (X509SVIDRequest) returns (stream X509SVIDResponse)",
            "only in the table: rpc SpiffeWorkloadAPI/ValidateJWTSVID (ValidateJWTSVIDRequest) returns (ValidateJWTSVIDResponse)",
        ]
    );
}

fn schema() -> FileDescriptorSet {
    FileDescriptorSet::decode(finial_proto::FILE_DESCRIPTOR_SET).expect("the build wrote the set")
}

/// What one side has and the other lacks, sorted.
fn differences(set: &FileDescriptorSet, table: &str) -> Vec<String> {
    let schema: BTreeSet<String> = facts(set);
    let table: BTreeSet<String> = table
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(str::to_owned)
        .collect();
    let surplus = schema
        .difference(&table)
        .map(|fact| format!("only in the schema: {fact}"));
    let missing = table
        .difference(&schema)
        .map(|fact| format!("only in the table: {fact}"));
    surplus.chain(missing).collect()
}

fn own_files(set: &FileDescriptorSet) -> impl Iterator<Item = &prost_types::FileDescriptorProto> {
    set.file.iter().filter(|file| file.package() != "google.protobuf")
}

/// The schema as lines of the table.
fn facts(set: &FileDescriptorSet) -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    for file in own_files(set) {
        for service in &file.service {
            service_facts(&mut facts, file.package(), service);
        }
        for message in &file.message_type {
            message_facts(&mut facts, file.package(), message);
        }
        for values in &file.enum_type {
            enum_facts(&mut facts, file.package(), values);
        }
    }
    facts
}

fn service_facts(facts: &mut BTreeSet<String>, package: &str, service: &ServiceDescriptorProto) {
    let name = qualified(package, service.name());
    facts.insert(format!("service {name}"));
    for method in &service.method {
        facts.insert(format!(
            "rpc {name}/{} ({}{}) returns ({}{})",
            method.name(),
            if method.client_streaming() { "stream " } else { "" },
            without_dot(method.input_type()),
            if method.server_streaming() { "stream " } else { "" },
            without_dot(method.output_type()),
        ));
    }
}

fn message_facts(facts: &mut BTreeSet<String>, scope: &str, message: &DescriptorProto) {
    let name = qualified(scope, message.name());
    facts.insert(format!("message {name}"));
    for field in &message.field {
        facts.insert(field_fact(&name, message, field));
    }
    for nested in message.nested_type.iter().filter(|nested| !is_map_entry(nested)) {
        message_facts(facts, &name, nested);
    }
    for values in &message.enum_type {
        enum_facts(facts, &name, values);
    }
}

fn enum_facts(facts: &mut BTreeSet<String>, scope: &str, values: &EnumDescriptorProto) {
    let name = qualified(scope, values.name());
    facts.insert(format!("enum {name}"));
    for value in &values.value {
        facts.insert(format!("value {name} {} {}", value.number(), value.name()));
    }
}

fn field_fact(name: &str, message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let map_entry = message
        .nested_type
        .iter()
        .find(|nested| is_map_entry(nested) && field.type_name() == format!(".{name}.{}", nested.name()));
    let kind = match map_entry {
        Some(entry) => format!(
            "map<{},{}>",
            type_name(&entry.field[0]),
            type_name(&entry.field[1])
        ),
        None if field.label() == Label::Repeated => format!("repeated {}", type_name(field)),
        None if field.proto3_optional() => format!("optional {}", type_name(field)),
        None => type_name(field),
    };
    // The compiler makes a oneof of its own for each optional field.
    let oneof = match field.oneof_index {
        Some(index) if !field.proto3_optional() => {
            format!(
                " oneof {}",
                message.oneof_decl[usize::try_from(index).expect("an index is not negative")].name()
            )
        }
        _ => String::new(),
    };
    format!("field {name} {} {} {kind}{oneof}", field.number(), field.name())
}

fn type_name(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => without_dot(field.type_name()).to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn is_map_entry(message: &DescriptorProto) -> bool {
    message
        .options
        .as_ref()
        .is_some_and(|options| options.map_entry())
}

fn qualified(scope: &str, name: &str) -> String {
    if scope.is_empty() {
        name.to_owned()
    } else {
        format!("{scope}.{name}")
    }
}

fn without_dot(name: &str) -> &str {
    name.trim_start_matches('.')
}

/// A field of a message of `spire.api.types`.
fn field_mut<'a>(set: &'a mut FileDescriptorSet, message: &str, field: &str) -> &'a mut FieldDescriptorProto {
    set.file
        .iter_mut()
        .filter(|file| file.package() == "spire.api.types")
        .flat_map(|file| &mut file.message_type)
        .find(|found| found.name() == message)
        .and_then(|found| found.field.iter_mut().find(|found| found.name() == field))
        .expect("the field exists")
}
