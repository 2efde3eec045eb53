//! `spire.api.server.bundle.v1.Bundle`: the own bundle and those of federated trust domains.

use std::sync::Arc;

use finial_identity::bundle::{Bundle, JwtAuthority};
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::wire;
use finial_proto::spire::api::server::bundle::v1 as pb;
use finial_proto::spire::api::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use finial_proto::spire::api::server::bundle::v1::bundle_server::Bundle as BundleApi;
use finial_proto::spire::api::types;
use tonic::{Request, Response, Status};

use super::Services;
use super::call::{Call, field};
use super::given_bundle::{check_unused, foreign_bundle, joined, untainted};
use super::page::Page;
use super::status::{OrRefuse, Refusal, ok};
use crate::store::{BundleDeleteMode, BundleDeleted, StoredBundle, update_bundle};

const SCAN: u32 = 100;

/// Answers the Bundle service.
#[derive(Debug)]
pub struct BundleService(Arc<Services>);

impl BundleService {
    /// Works with these parts.
    pub fn new(services: Arc<Services>) -> Self {
        Self(services)
    }
}

/// What is done with each bundle of a call.
#[derive(Debug)]
enum Change {
    Create,
    /// The part that the mask names.
    Update(Option<types::BundleMask>),
    Set,
}

type Answer = (Option<types::Status>, Option<types::Bundle>);

#[tonic::async_trait]
impl BundleApi for BundleService {
    async fn count_bundles(
        &self,
        request: Request<pb::CountBundlesRequest>,
    ) -> Result<Response<pb::CountBundlesResponse>, Status> {
        let call = Call::of(&request)?;
        let count = self
            .0
            .count_bundles()
            .await
            .map_err(|refusal| call.refuse(refusal))?;
        Ok(Response::new(pb::CountBundlesResponse { count }))
    }

    async fn get_bundle(
        &self,
        request: Request<pb::GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let call = Call::of(&request)?;
        let bundle = self
            .0
            .own_bundle()
            .await
            .map_err(|refusal| call.refuse(refusal))?;
        Ok(Response::new(
            self.masked(&bundle, &request.get_ref().output_mask),
        ))
    }

    async fn append_bundle(
        &self,
        request: Request<pb::AppendBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let call = Call::of(&request)?;
        let appended = self.append(&call, request.into_inner()).await;
        appended
            .map(Response::new)
            .map_err(|refusal| call.refuse(refusal))
    }

    async fn publish_jwt_authority(
        &self,
        request: Request<pb::PublishJwtAuthorityRequest>,
    ) -> Result<Response<pb::PublishJwtAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let published = async {
            let key = request
                .into_inner()
                .jwt_authority
                .ok_or_else(|| Refusal::invalid("missing JWT authority"))?;
            call.note(field::JWT_KEY_ID, &key.key_id);
            let authority = JwtAuthority {
                // Only this server's own operations taint.
                tainted: false,
                ..wire::jwt_authority_from_wire(&key).or_refuse("invalid JWT authority")?
            };
            let bundle = self
                .append_own(|bundle| {
                    bundle.append(Vec::new(), vec![authority]);
                })
                .await?;
            Ok(pb::PublishJwtAuthorityResponse {
                jwt_authorities: wire::bundle_to_wire(&bundle).jwt_authorities,
            })
        };
        published
            .await
            .map(Response::new)
            .map_err(|refusal| call.refuse(refusal))
    }

    async fn publish_wit_authority(
        &self,
        request: Request<pb::PublishWitAuthorityRequest>,
    ) -> Result<Response<pb::PublishWitAuthorityResponse>, Status> {
        let call = Call::of(&request)?;
        let published = self.publish_wit(&call, request.into_inner()).await;
        published
            .map(Response::new)
            .map_err(|refusal| call.refuse(refusal))
    }

    async fn list_federated_bundles(
        &self,
        request: Request<pb::ListFederatedBundlesRequest>,
    ) -> Result<Response<pb::ListFederatedBundlesResponse>, Status> {
        let call = Call::of(&request)?;
        let listed = self.list(request.into_inner()).await;
        listed.map(Response::new).map_err(|refusal| call.refuse(refusal))
    }

    async fn get_federated_bundle(
        &self,
        request: Request<pb::GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        call.note(field::TRUST_DOMAIN_ID, &request.trust_domain);
        let found = async {
            let trust_domain = self.foreign(&request.trust_domain, "getting a federated bundle")?;
            let stored = self
                .0
                .store
                .bundle(&trust_domain)
                .await
                .or_refuse("failed to fetch bundle")?;
            let stored = stored.ok_or_else(|| Refusal::not_found("bundle not found"))?;
            Ok(self.masked(&stored.bundle, &request.output_mask))
        };
        found
            .await
            .map(Response::new)
            .map_err(|refusal| call.refuse(refusal))
    }

    async fn batch_create_federated_bundle(
        &self,
        request: Request<pb::BatchCreateFederatedBundleRequest>,
    ) -> Result<Response<pb::BatchCreateFederatedBundleResponse>, Status> {
        use pb::batch_create_federated_bundle_response::Result as Item;
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let results = self
            .change_all(&call, &Change::Create, request.bundle, &request.output_mask)
            .await;
        let results = results.into_iter();
        let results = results.map(|(status, bundle)| Item { status, bundle }).collect();
        Ok(Response::new(pb::BatchCreateFederatedBundleResponse { results }))
    }

    async fn batch_update_federated_bundle(
        &self,
        request: Request<pb::BatchUpdateFederatedBundleRequest>,
    ) -> Result<Response<pb::BatchUpdateFederatedBundleResponse>, Status> {
        use pb::batch_update_federated_bundle_response::Result as Item;
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let results = self
            .change_all(
                &call,
                &Change::Update(request.input_mask),
                request.bundle,
                &request.output_mask,
            )
            .await;
        let results = results.into_iter();
        let results = results.map(|(status, bundle)| Item { status, bundle }).collect();
        Ok(Response::new(pb::BatchUpdateFederatedBundleResponse { results }))
    }

    async fn batch_set_federated_bundle(
        &self,
        request: Request<pb::BatchSetFederatedBundleRequest>,
    ) -> Result<Response<pb::BatchSetFederatedBundleResponse>, Status> {
        use pb::batch_set_federated_bundle_response::Result as Item;
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let results = self
            .change_all(&call, &Change::Set, request.bundle, &request.output_mask)
            .await;
        let results = results.into_iter();
        let results = results.map(|(status, bundle)| Item { status, bundle }).collect();
        Ok(Response::new(pb::BatchSetFederatedBundleResponse { results }))
    }

    async fn batch_delete_federated_bundle(
        &self,
        request: Request<pb::BatchDeleteFederatedBundleRequest>,
    ) -> Result<Response<pb::BatchDeleteFederatedBundleResponse>, Status> {
        use pb::batch_delete_federated_bundle_response::Result as Item;
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let mode = match Mode::try_from(request.mode) {
            Ok(Mode::Restrict) => BundleDeleteMode::Restrict,
            Ok(Mode::Delete) => BundleDeleteMode::Delete,
            Ok(Mode::Dissociate) => BundleDeleteMode::Dissociate,
            Err(_) => {
                let refusal = Refusal::invalid(format!("unhandled delete mode {}", request.mode));
                return Err(call.refuse(refusal));
            }
        };
        call.note(field::MODE, format!("{mode:?}").to_lowercase());
        let mut results = Vec::with_capacity(request.trust_domains.len());
        for trust_domain in request.trust_domains {
            let deleted = self.delete(&trust_domain, mode).await;
            call.note_item(
                vec![(field::TRUST_DOMAIN_ID, trust_domain.clone())],
                deleted.as_ref(),
            );
            let status = match deleted {
                Ok(()) => ok(),
                Err(refusal) => call.refuse_item(&refusal),
            };
            results.push(Item {
                status: Some(status),
                trust_domain,
            });
        }
        Ok(Response::new(pb::BatchDeleteFederatedBundleResponse { results }))
    }
}

impl BundleService {
    async fn append(&self, call: &Call, request: pb::AppendBundleRequest) -> Result<types::Bundle, Refusal> {
        let wit_authorities = match self.0.settings.wit_svids {
            true => request.wit_authorities,
            false => Vec::new(),
        };
        let is_empty = request.x509_authorities.is_empty() && request.jwt_authorities.is_empty();
        if is_empty && wit_authorities.is_empty() {
            return Err(Refusal::invalid("no authorities to append"));
        }
        call.note(field::TRUST_DOMAIN_ID, self.0.trust_domain.id());
        let appended = types::Bundle {
            trust_domain: self.0.trust_domain.to_string(),
            x509_authorities: request.x509_authorities,
            jwt_authorities: request.jwt_authorities,
            wit_authorities,
            ..types::Bundle::default()
        };
        let appended =
            untainted(wire::bundle_from_wire(appended).or_refuse("failed to convert authorities")?);
        let bundle = self
            .append_own(|bundle| {
                bundle.append(appended.x509_authorities, appended.jwt_authorities);
                bundle.append_wit(appended.wit_authorities);
            })
            .await?;
        Ok(self.masked(&bundle, &request.output_mask))
    }

    async fn publish_wit(
        &self,
        call: &Call,
        request: pb::PublishWitAuthorityRequest,
    ) -> Result<pb::PublishWitAuthorityResponse, Refusal> {
        if !self.0.settings.wit_svids {
            return Err(Refusal::unimplemented(
                "publishing WIT authorities is not supported",
            ));
        }
        let key = request
            .wit_authority
            .ok_or_else(|| Refusal::invalid("missing WIT authority"))?;
        call.note(field::WIT_KEY_ID, &key.key_id);
        let key = types::WitKey {
            tainted: false,
            ..key
        };
        let authority = wire::wit_authority_from_wire(&key).or_refuse("invalid WIT authority")?;
        let bundle = self
            .append_own(|bundle| {
                bundle.append_wit(vec![authority]);
            })
            .await?;
        Ok(pb::PublishWitAuthorityResponse {
            wit_authorities: wire::bundle_to_wire(&bundle).wit_authorities,
        })
    }

    async fn append_own(
        &self,
        edit: impl FnOnce(&mut Bundle) + Send + 'static,
    ) -> Result<Arc<Bundle>, Refusal> {
        let what = "failed to append bundle";
        let stored = self
            .0
            .store
            .edit_bundle(&self.0.trust_domain, Box::new(edit))
            .await
            .or_refuse(what)?;
        stored
            .map(|stored| stored.bundle)
            .ok_or_else(|| Refusal::not_found("bundle not found"))
    }

    async fn list(
        &self,
        request: pb::ListFederatedBundlesRequest,
    ) -> Result<pb::ListFederatedBundlesResponse, Refusal> {
        let what = "failed to list bundles";
        let mut page = Page::new(request.page_size, request.page_token);
        let mut after = page.begins_after_row(what)?;
        while page.has_room() {
            let rows = self.0.store.list_bundles(after, page.room(SCAN)).await;
            let rows = rows.or_refuse(what)?;
            let Some(last) = rows.last() else { break };
            after = last.row;
            for StoredBundle { row, bundle } in rows {
                match bundle.trust_domain == self.0.trust_domain {
                    true => page.pass_over(row),
                    false => page.push(self.masked(&bundle, &request.output_mask), row),
                }
            }
        }
        let (bundles, next_page_token) = page.finish();
        Ok(pb::ListFederatedBundlesResponse {
            bundles,
            next_page_token,
        })
    }

    /// Changes one bundle after the other; the result of each goes to the audit log and to the caller.
    async fn change_all(
        &self,
        call: &Call,
        change: &Change,
        bundles: Vec<types::Bundle>,
        mask: &Option<types::BundleMask>,
    ) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(bundles.len());
        let mut named = Vec::new();
        for bundle in bundles {
            let fields = vec![(field::TRUST_DOMAIN_ID, bundle.trust_domain.clone())];
            named.extend(TrustDomain::parse_name_or_id(&bundle.trust_domain));
            let changed = match change {
                Change::Create => self.create(bundle).await,
                Change::Update(input_mask) => self.update(bundle, input_mask).await,
                Change::Set => self.set(bundle).await,
            };
            call.note_item(fields, changed.as_ref());
            answers.push(self.answer(call, changed, mask));
        }
        self.refresh_after(&named).await;
        answers
    }

    async fn create(&self, bundle: types::Bundle) -> Result<Arc<Bundle>, Refusal> {
        let bundle = self.convert(bundle, "creating a federated bundle")?;
        let stored = self
            .0
            .store
            .create_bundle(bundle)
            .await
            .or_refuse("unable to create bundle")?;
        stored
            .map(|stored| stored.bundle)
            .ok_or_else(|| Refusal::exists("bundle already exists"))
    }

    async fn set(&self, bundle: types::Bundle) -> Result<Arc<Bundle>, Refusal> {
        let bundle = self.convert(bundle, "setting a federated bundle")?;
        let stored = self
            .0
            .store
            .put_bundle(bundle)
            .await
            .or_refuse("failed to set bundle")?;
        Ok(stored.bundle)
    }

    async fn update(
        &self,
        bundle: types::Bundle,
        mask: &Option<types::BundleMask>,
    ) -> Result<Arc<Bundle>, Refusal> {
        let bundle = self.convert(bundle, "updating a federated bundle")?;
        let trust_domain = bundle.trust_domain.clone();
        let mask = *mask;
        let edit = move |stored: &mut Bundle| {
            *stored = match mask {
                None => bundle,
                Some(mask) => joined(stored, bundle, mask)?,
            };
            Ok(())
        };
        let (stored, edited) = update_bundle(&*self.0.store, &trust_domain, edit)
            .await
            .or_refuse("failed to update bundle")?
            .ok_or_else(|| Refusal::not_found("bundle not found"))?;
        edited.map(|()| stored.bundle)
    }

    /// A bundle that authenticates an endpoint was perhaps what was missing.
    async fn refresh_after(&self, named: &[TrustDomain]) {
        if let Err(error) = self.0.federation.changed(named).await {
            tracing::error!(%error, "federation relationships not read");
        }
    }

    async fn delete(&self, name: &str, mode: BundleDeleteMode) -> Result<(), Refusal> {
        let trust_domain = self.foreign(name, "deleting a federated bundle")?;
        if mode != BundleDeleteMode::Delete {
            check_unused(&self.0, &trust_domain, mode).await?;
        }
        match self
            .0
            .store
            .delete_bundle(&trust_domain, mode)
            .await
            .or_refuse("failed to delete federated bundle")?
        {
            BundleDeleted::Deleted(_) => Ok(()),
            BundleDeleted::NotFound => Err(Refusal::not_found("bundle not found")),
            BundleDeleted::InUse(entries) => Err(Refusal::precondition(format!(
                "failed to delete federated bundle: cannot delete bundle; federated with {entries} registration entries"
            ))),
        }
    }

    fn convert(&self, bundle: types::Bundle, doing: &str) -> Result<Bundle, Refusal> {
        self.foreign(&bundle.trust_domain, doing)?;
        foreign_bundle(&self.0, bundle)
    }

    fn foreign(&self, name: &str, doing: &str) -> Result<TrustDomain, Refusal> {
        let trust_domain =
            TrustDomain::parse_name_or_id(name).or_refuse("trust domain argument is not valid")?;
        if trust_domain == self.0.trust_domain {
            return Err(Refusal::invalid(format!(
                "{doing} for the server's own trust domain is not allowed"
            )));
        }
        Ok(trust_domain)
    }

    fn answer(
        &self,
        call: &Call,
        outcome: Result<Arc<Bundle>, Refusal>,
        mask: &Option<types::BundleMask>,
    ) -> Answer {
        match outcome {
            Ok(bundle) => (Some(ok()), Some(self.masked(&bundle, mask))),
            Err(refusal) => (Some(call.refuse_item(&refusal)), None),
        }
    }

    fn masked(&self, bundle: &Bundle, mask: &Option<types::BundleMask>) -> types::Bundle {
        wire::apply_bundle_mask(self.0.bundle_to_wire(bundle), mask)
    }
}
