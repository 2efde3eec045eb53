//! The audit log: one event for each call that changes something; for every call, and every item of
//! a batch, when `audit_log_enabled` is set (SPIRE's `API accessed`).

use finial_identity::metrics::code_name;
use tonic::Code;
use tracing::info;
use uuid::Uuid;

use super::authorization::{Effect, Row};
use crate::api::call::{Call, Fields, Peer, field};
use crate::api::status::Refusal;
use crate::telemetry::AUDIT_TARGET;

/// Writes the audit log of API calls.
#[derive(Clone, Copy, Debug)]
pub struct Audit {
    everything: bool,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The gRPC code.
    pub code: Code,
    /// The text sent with it.
    pub message: String,
}

impl Audit {
    /// `everything`: `audit_log_enabled`.
    pub fn new(everything: bool) -> Self {
        Self { everything }
    }

    /// A call that was admitted has ended.
    pub fn done(&self, row: &Row, call: &Call, outcome: &Outcome) {
        if !self.everything && row.effect == Effect::ReadsOrSigns {
            return;
        }
        let trail = call.trail();
        let line = Line {
            request_id: call.request_id,
            method: row.method,
            peer: &call.caller.peer,
            authorized: Some((call.caller.class.as_str(), call.caller.via.as_str())),
        };
        if trail.items.is_empty() || outcome.code != Code::Ok {
            line.write(&trail.fields, outcome.code, &outcome.message);
            return;
        }
        for item in &trail.items {
            let mut fields = trail.fields.clone();
            fields.extend(item.fields.iter().cloned());
            match &item.refusal {
                None => line.write(&fields, Code::Ok, ""),
                Some((code, message)) => line.write(&fields, *code, message),
            }
        }
    }

    /// A call was not admitted.
    pub fn refused(&self, request_id: Uuid, method: &str, peer: &Peer, refusal: &Refusal) {
        if self.everything {
            Line {
                request_id,
                method,
                peer,
                authorized: None,
            }
            .write(&Vec::new(), refusal.code(), refusal.message());
        }
    }
}

/// What all lines of a call have in common.
struct Line<'a> {
    request_id: Uuid,
    method: &'a str,
    peer: &'a Peer,
    authorized: Option<(&'static str, &'static str)>,
}

impl Line<'_> {
    fn write(&self, fields: &Fields, code: Code, message: &str) {
        let of = |name: &str| {
            fields
                .iter()
                .find(|(field, _)| *field == name)
                .map(|(_, value)| value.as_str())
        };
        let (service, method) = split(self.method);
        let failed = code != Code::Ok;
        let (mut uid, mut gid, mut path, mut addr, mut id) = (None, None, None, None, None);
        match self.peer {
            Peer::Local {
                uid: caller_uid,
                gid: caller_gid,
                path: caller_path,
                ..
            } => {
                uid = Some(*caller_uid);
                gid = Some(*caller_gid);
                path = caller_path.as_ref().map(|path| path.display().to_string());
            }
            Peer::Remote {
                addr: caller, svid, ..
            } => {
                addr = Some(caller.to_string());
                id = svid.as_ref().map(|(id, _)| id.as_str());
            }
        }
        info!(
            target: AUDIT_TARGET,
            r#type = "audit",
            request_id = %self.request_id,
            status = if failed { "error" } else { "success" },
            status_code = failed.then(|| code_name(code)),
            status_message = failed.then_some(message),
            caller_uid = uid,
            caller_gid = gid,
            caller_path = path,
            caller_addr = addr,
            caller_id = id,
            authorized_as = self.authorized.map(|(class, _)| class),
            authorized_via = self.authorized.map(|(_, via)| via),
            service,
            method,
            spiffe_id = of(field::SPIFFE_ID),
            parent_id = of(field::PARENT_ID),
            selectors = of(field::SELECTORS),
            entry_id = of(field::ENTRY_ID),
            agent_id = of(field::AGENT_ID),
            agent_version = of(field::AGENT_VERSION),
            csr = of(field::CSR),
            ttl = of(field::TTL),
            audience = of(field::AUDIENCE),
            trust_domain_id = of(field::TRUST_DOMAIN_ID),
            node_attestor_type = of(field::ATTESTATION_TYPE),
            local_authority_id = of(field::AUTHORITY_ID),
            new_level = of(field::LOG_LEVEL),
            federates_with = of(field::FEDERATES_WITH),
            expires_at = of(field::EXPIRES_AT),
            admin = of(field::ADMIN),
            downstream = of(field::DOWNSTREAM),
            dns_name = of(field::DNS_NAMES),
            hint = of(field::HINT),
            jwt_authority_key_id = of(field::JWT_KEY_ID),
            wit_authority_key_id = of(field::WIT_KEY_ID),
            public_key = of(field::PUBLIC_KEY),
            mode = of(field::MODE),
            bundle_endpoint_url = of(field::BUNDLE_ENDPOINT_URL),
            bundle_endpoint_profile = of(field::BUNDLE_ENDPOINT_PROFILE),
            endpoint_spiffe_id = of(field::ENDPOINT_SPIFFE_ID),
            "API accessed"
        );
    }
}

/// `/package.Service/Method` as the log shows it: service without its package prefix, and method.
fn split(path: &str) -> (&str, &str) {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    (
        service.strip_prefix("spire.api.server.").unwrap_or(service),
        method,
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use finial_identity::process::Clock;

    use super::super::authorization::row;
    use super::*;
    use crate::api::call::{Caller, CallerClass, Via};
    use crate::telemetry::LogSettings;

    fn call() -> Call {
        let peer = Peer::Local {
            uid: 1000,
            gid: 100,
            pid: Some(1),
            path: Some("/usr/bin/x".into()),
        };
        let caller = Caller {
            class: CallerClass::Local,
            via: Via::Transport,
            peer: Arc::new(peer),
        };
        Call::new(caller, None)
    }

    fn ok() -> Outcome {
        Outcome {
            code: Code::Ok,
            message: String::new(),
        }
    }

    /// What the log says about what `f` does, line by line.
    fn lines(f: impl FnOnce()) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let settings = LogSettings {
            file: Some(path.clone()),
            ..LogSettings::default()
        };
        let (dispatch, _control) = settings.build(Clock::system()).unwrap();
        tracing::dispatcher::with_default(&dispatch, f);
        read(&path)
    }

    fn read(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn every_item_of_a_batch_has_a_line_with_the_calls_id() {
        let call = call();
        call.note_item(vec![(field::ENTRY_ID, "e1".to_owned())], Ok(()));
        call.note_item::<()>(
            vec![(field::ENTRY_ID, "e2".to_owned())],
            Err(&Refusal::not_found("entry not found")),
        );
        let row = row("/spire.api.server.entry.v1.Entry/BatchDeleteEntry").unwrap();
        let lines = lines(|| Audit::new(false).done(row, &call, &ok()));
        assert_eq!(lines.len(), 2, "{lines:?}");
        for line in &lines {
            for part in [
                "API accessed",
                "type=audit",
                "caller_uid=1000",
                "caller_gid=100",
                "caller_path=/usr/bin/x",
                "authorized_as=local",
                "authorized_via=transport",
                "service=entry.v1.Entry",
                "method=BatchDeleteEntry",
                &call.request_id.to_string(),
            ] {
                assert!(line.contains(part), "{part} in {line}");
            }
        }
        assert!(
            lines[0].contains("entry_id=e1") && lines[0].contains("status=success"),
            "{lines:?}"
        );
        for part in [
            "entry_id=e2",
            "status=error",
            "status_code=NotFound",
            "entry not found",
        ] {
            assert!(lines[1].contains(part), "{part} in {lines:?}");
        }
    }

    #[test]
    fn reading_calls_and_refusals_are_logged_only_when_everything_is() {
        let row = row("/spire.api.server.entry.v1.Entry/GetEntry").unwrap();
        let call = call();
        let refusal = Refusal::denied("authorization denied");
        let write = |audit: Audit| {
            audit.done(row, &call, &ok());
            audit.refused(call.request_id, "/a.B/C", &call.caller.peer, &refusal);
        };
        assert_eq!(lines(|| write(Audit::new(false))), [""; 0]);
        let lines = lines(|| write(Audit::new(true)));
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[1].contains("status_code=PermissionDenied"), "{lines:?}");
    }
}
