//! WIT-SVIDs from the server.

use finial_identity::key::{JwsAlgorithm, PublicKey};
use finial_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use finial_proto::spire::api::server::svid::v1::{
    BatchNewWitsvidRequest, NewWitsvidParams, batch_new_witsvid_response,
};
use finial_proto::spire::api::types;
use tonic::Code;

use super::signed::jwt_from_wire;
use super::{MAX_ANSWER, SignedJwt, Upstream, UpstreamError, error};

impl Upstream {
    /// Has a WIT-SVID signed for a workload's key (`BatchNewWITSVID`). No duty of a server: one that does not offer WIT-SVIDs
    /// answers `Internal` to each, and is not to be left for that.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn sign_wit(
        &self,
        entry_id: &str,
        public_key: &PublicKey,
        algorithm: JwsAlgorithm,
    ) -> Result<SignedJwt, UpstreamError> {
        let params = vec![NewWitsvidParams {
            entry_id: entry_id.to_owned(),
            public_key: public_key.spki_der().to_vec(),
            signing_algorithm: algorithm.as_str().to_owned(),
        }];
        let line = self.line()?;
        let mut client = SvidClient::new(line.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        let call = client.batch_new_witsvid(BatchNewWitsvidRequest { params });
        let mut results = self.timed(&line, "sign WIT-SVID", call).await?.results;
        match (results.pop(), results.is_empty()) {
            (Some(only), true) => outcome(only),
            _ => Err(UpstreamError::Malformed(
                "WIT-SVID: not one result for one request".to_owned(),
            )),
        }
    }
}

/// SPIRE sets no status on success.
fn outcome(result: batch_new_witsvid_response::Result) -> Result<SignedJwt, UpstreamError> {
    let status = result.status.unwrap_or_default();
    match (Code::from_i32(status.code), result.svid) {
        (Code::Ok, Some(svid)) => jwt_from_wire(types::Jwtsvid {
            token: svid.token,
            id: svid.id,
            expires_at: svid.expires_at,
            issued_at: svid.issued_at,
            hint: svid.hint,
        }),
        (Code::Ok, None) => Err(UpstreamError::Malformed(
            "WIT-SVID: none in the answer".to_owned(),
        )),
        (Code::Unavailable, _) => Err(UpstreamError::Unavailable(error::clipped(&status.message))),
        (code, _) => Err(UpstreamError::Other {
            code,
            message: error::clipped(&status.message),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(code: Code, has_svid: bool) -> batch_new_witsvid_response::Result {
        batch_new_witsvid_response::Result {
            status: (code != Code::Ok).then(|| types::Status {
                code: code.into(),
                message: "why".to_owned(),
            }),
            svid: has_svid.then(|| types::Witsvid {
                token: "a.b.c".to_owned(),
                id: Some(types::Spiffeid {
                    trust_domain: "example.org".to_owned(),
                    path: "/web".to_owned(),
                }),
                issued_at: 100,
                expires_at: 400,
                ..types::Witsvid::default()
            }),
        }
    }

    #[test]
    fn results_of_signing_are_told_apart_and_success_may_be_silent() {
        assert_eq!(&*outcome(result(Code::Ok, true)).unwrap().token, "a.b.c");
        assert!(matches!(
            outcome(result(Code::Ok, false)),
            Err(UpstreamError::Malformed(_))
        ));
        assert!(matches!(
            outcome(result(Code::NotFound, false)),
            Err(UpstreamError::Other {
                code: Code::NotFound,
                ..
            })
        ));
    }
}
