//! The two methods of the SVID service that sign WIT-SVIDs.

use finial_identity::key::{JwsAlgorithm, KeyError, PublicKey};
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::wire;
use finial_proto::spire::api::server::svid::v1 as pb;
use finial_proto::spire::api::server::svid::v1::batch_new_witsvid_response::Result as Item;
use finial_proto::spire::api::types;

use super::call::{Call, field};
use super::csr;
use super::status::{OrRefuse, Refusal, ok};
use super::svid::{SvidService, YIELD_EVERY, ttl_seconds};
use crate::authority::{SignedJwt, WitRequest};

impl SvidService {
    pub(super) async fn mint_wit(
        &self,
        call: &Call,
        request: pb::MintWitsvidRequest,
    ) -> Result<types::Witsvid, Refusal> {
        if !self.0.settings.wit_svids {
            return Err(Refusal::unimplemented("WIT-SVIDs are disabled"));
        }
        let id = wire::spiffe_id_from_wire(request.id.as_ref()).or_refuse("invalid SPIFFE ID")?;
        self.check_workload(&id, "invalid SPIFFE ID")?;
        call.note(field::SPIFFE_ID, &id);
        call.note(field::PUBLIC_KEY, csr::fingerprint(&request.public_key));
        call.note(field::TTL, request.ttl);
        let (public_key, algorithm) = confirmation(&request.public_key, &request.signing_algorithm)?;
        let request = WitRequest {
            spiffe_id: id.clone(),
            public_key,
            algorithm,
            ttl: ttl_seconds(request.ttl, "TTL is invalid")?,
        };
        let signed = self.0.authority.sign_wit(request).await;
        Ok(to_wire(&id, signed.or_refuse("failed to sign WIT-SVID")?))
    }

    pub(super) async fn sign_wit_batch(
        &self,
        call: &Call,
        params: Vec<pb::NewWitsvidParams>,
    ) -> Result<Vec<Item>, Refusal> {
        if params.is_empty() {
            return Err(Refusal::invalid("missing parameters"));
        }
        call.pay_for(params.len()).await?;
        if !self.0.settings.wit_svids {
            // As SPIRE without its flag: nothing refuses the call, but there is no key to sign with.
            let refusal = Refusal::internal("failed to sign WIT-SVID: no WIT authority");
            let results = params.iter().map(|_| Item {
                status: Some(call.refuse_item(&refusal)),
                svid: None,
            });
            return Ok(results.collect());
        }
        let agent = call.agent()?;
        let mut results = Vec::with_capacity(params.len());
        for (n, param) in params.into_iter().enumerate() {
            if n > 0 && n % YIELD_EVERY == 0 {
                // So that a large batch does not keep other calls waiting.
                tokio::task::yield_now().await;
            }
            let fields = vec![
                (field::ENTRY_ID, param.entry_id.clone()),
                (field::PUBLIC_KEY, csr::fingerprint(&param.public_key)),
            ];
            let signed = self.sign_one_wit(agent, param).await;
            call.note_item(fields, signed.as_ref());
            results.push(match signed {
                Ok(svid) => Item {
                    status: Some(ok()),
                    svid: Some(svid),
                },
                Err(refusal) => Item {
                    status: Some(call.refuse_item(&refusal)),
                    svid: None,
                },
            });
        }
        Ok(results)
    }

    async fn sign_one_wit(
        &self,
        agent: &SpiffeId,
        param: pb::NewWitsvidParams,
    ) -> Result<types::Witsvid, Refusal> {
        if param.entry_id.is_empty() {
            return Err(Refusal::invalid("missing entry ID"));
        }
        let entry = self.authorized(agent, &param.entry_id).await?;
        let (public_key, algorithm) = confirmation(&param.public_key, &param.signing_algorithm)?;
        let request = WitRequest::for_entry(&entry, public_key, algorithm);
        let signed = self.0.authority.sign_wit(request).await;
        Ok(to_wire(
            &entry.spiffe_id,
            signed.or_refuse("failed to sign WIT-SVID")?,
        ))
    }
}

/// The workload's key and the algorithm that it is used with, which have to fit.
fn confirmation(spki_der: &[u8], algorithm: &str) -> Result<(PublicKey, JwsAlgorithm), Refusal> {
    if spki_der.is_empty() {
        return Err(Refusal::invalid("missing public key"));
    }
    if algorithm.is_empty() {
        return Err(Refusal::invalid("missing signing algorithm"));
    }
    let invalid = |what: &str, error: KeyError| Refusal::invalid(format!("{what}: {error}"));
    let public_key =
        PublicKey::from_spki_der(spki_der).map_err(|error| invalid("malformed public key", error))?;
    let algorithm: JwsAlgorithm = algorithm
        .parse()
        .map_err(|error| invalid("invalid signing algorithm", error))?;
    if !public_key.jws_algorithms().contains(&algorithm) {
        return Err(Refusal::invalid(format!(
            "signing algorithm {algorithm} does not fit the public key"
        )));
    }
    Ok((public_key, algorithm))
}

fn to_wire(id: &SpiffeId, signed: SignedJwt) -> types::Witsvid {
    types::Witsvid {
        token: signed.token,
        id: Some(wire::spiffe_id_to_wire(id)),
        expires_at: signed.expires_at.unix_timestamp(),
        issued_at: signed.issued_at.unix_timestamp(),
        hint: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use finial_identity::key::{KeyType, PrivateKey};

    use super::*;

    #[test]
    fn key_and_algorithm_have_to_be_there_and_to_fit() {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let spki = key.public_key().spki_der();
        assert_eq!(confirmation(spki, "ES256").unwrap().1, JwsAlgorithm::ES256);
        for (spki, algorithm, why) in [
            (&b""[..], "ES256", "missing public key"),
            (spki, "", "missing signing algorithm"),
            (&spki[1..], "ES256", "malformed public key"),
            (spki, "EdDSA", "invalid signing algorithm"),
            (spki, "ES384", "does not fit"),
        ] {
            let refusal = confirmation(spki, algorithm).unwrap_err();
            assert_eq!(refusal.code(), tonic::Code::InvalidArgument);
            assert!(refusal.message().contains(why), "{}", refusal.message());
        }
    }
}
