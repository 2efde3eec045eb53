//! `spire.api.server.trustdomain.v1.TrustDomain`: relationships with foreign trust domains. Those of the configuration
//! are not listed, as in SPIRE; those that objects declare are listed after the stored ones and can be changed only by
//! changing their object.

use std::ops::Bound;
use std::sync::Arc;

use finial_identity::bundle::Bundle;
use finial_identity::federation::{Declared, EndpointUrl, Relationship};
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::wire;
use finial_proto::spire::api::server::trustdomain::v1 as pb;
use finial_proto::spire::api::server::trustdomain::v1::trust_domain_server::TrustDomain as TrustDomainApi;
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::federation_relationship::BundleEndpointProfile as WireProfile;
use tonic::{Request, Response, Status};

use super::Services;
use super::call::{Call, Fields, field};
use super::given_bundle::foreign_bundle;
use super::page::Page;
use super::status::{OrRefuse, Refusal, ok};
use crate::store::{RelationshipPatch, StoredRelationship};

const SCAN: u32 = 500;
/// Begins the page tokens behind the stored relationships.
const DECLARED_TOKEN: &str = "declared:";

type Mask = Option<types::FederationRelationshipMask>;
type Answer = (Option<types::Status>, Option<types::FederationRelationship>);

/// What is done with each relationship of a call.
#[derive(Debug)]
enum Change {
    Create,
    /// The part that the mask names.
    Update(Mask),
}

/// Answers the TrustDomain service.
#[derive(Debug)]
pub struct TrustDomainService(Arc<Services>);

impl TrustDomainService {
    /// Works with these parts.
    pub fn new(services: Arc<Services>) -> Self {
        Self(services)
    }
}

#[tonic::async_trait]
impl TrustDomainApi for TrustDomainService {
    async fn list_federation_relationships(
        &self,
        request: Request<pb::ListFederationRelationshipsRequest>,
    ) -> Result<Response<pb::ListFederationRelationshipsResponse>, Status> {
        let call = Call::of(&request)?;
        let listed = self.list(request.into_inner()).await;
        listed.map(Response::new).map_err(|refusal| call.refuse(refusal))
    }

    async fn get_federation_relationship(
        &self,
        request: Request<pb::GetFederationRelationshipRequest>,
    ) -> Result<Response<types::FederationRelationship>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        call.note(field::TRUST_DOMAIN_ID, &request.trust_domain);
        let found = self.find(&request).await;
        found.map(Response::new).map_err(|refusal| call.refuse(refusal))
    }

    async fn batch_create_federation_relationship(
        &self,
        request: Request<pb::BatchCreateFederationRelationshipRequest>,
    ) -> Result<Response<pb::BatchCreateFederationRelationshipResponse>, Status> {
        use pb::batch_create_federation_relationship_response::Result as Item;
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let given = request.federation_relationships;
        let results = self
            .change_all(&call, &Change::Create, given, &request.output_mask)
            .await;
        let results = results.into_iter().map(|(status, federation_relationship)| Item {
            status,
            federation_relationship,
        });
        let results = results.collect();
        Ok(Response::new(pb::BatchCreateFederationRelationshipResponse {
            results,
        }))
    }

    async fn batch_update_federation_relationship(
        &self,
        request: Request<pb::BatchUpdateFederationRelationshipRequest>,
    ) -> Result<Response<pb::BatchUpdateFederationRelationshipResponse>, Status> {
        use pb::batch_update_federation_relationship_response::Result as Item;
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let given = request.federation_relationships;
        let results = self
            .change_all(
                &call,
                &Change::Update(request.input_mask),
                given,
                &request.output_mask,
            )
            .await;
        let results = results.into_iter().map(|(status, federation_relationship)| Item {
            status,
            federation_relationship,
        });
        let results = results.collect();
        Ok(Response::new(pb::BatchUpdateFederationRelationshipResponse {
            results,
        }))
    }

    async fn batch_delete_federation_relationship(
        &self,
        request: Request<pb::BatchDeleteFederationRelationshipRequest>,
    ) -> Result<Response<pb::BatchDeleteFederationRelationshipResponse>, Status> {
        use pb::batch_delete_federation_relationship_response::Result as Item;
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let mut results = Vec::with_capacity(request.trust_domains.len());
        for trust_domain in request.trust_domains {
            let deleted = self.delete(&trust_domain).await;
            call.note_item(
                vec![(field::TRUST_DOMAIN_ID, trust_domain.clone())],
                deleted.as_ref(),
            );
            let status = match deleted {
                Ok(()) => ok(),
                Err(refusal) => call.refuse_item(&refusal),
            };
            // The bare name also where the request has an ID, as SPIRE answers.
            let name = TrustDomain::parse_name_or_id(&trust_domain);
            results.push(Item {
                status: Some(status),
                trust_domain: name.map_or(trust_domain, |name| name.to_string()),
            });
        }
        self.follow(&[]).await;
        Ok(Response::new(pb::BatchDeleteFederationRelationshipResponse {
            results,
        }))
    }

    async fn refresh_bundle(
        &self,
        request: Request<pb::RefreshBundleRequest>,
    ) -> Result<Response<()>, Status> {
        let call = Call::of(&request)?;
        let name = request.into_inner().trust_domain;
        call.note(field::TRUST_DOMAIN_ID, &name);
        let refreshed = self.refresh(&name).await;
        refreshed
            .map(Response::new)
            .map_err(|refusal| call.refuse(refusal))
    }
}

impl TrustDomainService {
    async fn list(
        &self,
        request: pb::ListFederationRelationshipsRequest,
    ) -> Result<pb::ListFederationRelationshipsResponse, Refusal> {
        let what = "failed to list federation relationships";
        let mut page = Page::new(request.page_size, request.page_token);
        let declared_after = page.begins_after().strip_prefix(DECLARED_TOKEN);
        let declared_after = declared_after.map(TrustDomain::parse).transpose();
        let declared_after = declared_after.or_refuse("page token is not valid")?;
        if declared_after.is_none() {
            let mut after = page.begins_after_row(what)?;
            while page.has_room() {
                let rows = self.0.store.list_relationships(after, page.room(SCAN)).await;
                let rows = rows.or_refuse(what)?;
                let Some(last) = rows.last() else { break };
                after = last.row;
                for row in rows {
                    let shown = self.show(&row.relationship, &request.output_mask).await?;
                    page.push(shown, row.row);
                }
            }
        }
        // Those that objects declare, unless an operator's is stored.
        let declared = self.0.federation.all_declared();
        let from = declared_after.map_or(Bound::Unbounded, Bound::Excluded);
        for (trust_domain, declared) in declared.range((from, Bound::Unbounded)) {
            if !page.has_room() {
                break;
            }
            let stored = self.0.store.relationship(trust_domain).await.or_refuse(what)?;
            if stored.is_none() {
                let shown = self.show(&declared.relationship, &request.output_mask).await?;
                page.push(shown, format!("{DECLARED_TOKEN}{trust_domain}"));
            }
        }
        let (federation_relationships, next_page_token) = page.finish();
        Ok(pb::ListFederationRelationshipsResponse {
            federation_relationships,
            next_page_token,
        })
    }

    /// Changes one relationship after the other; the result of each goes to the audit log and to the caller.
    async fn change_all(
        &self,
        call: &Call,
        change: &Change,
        relationships: Vec<types::FederationRelationship>,
        mask: &Mask,
    ) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(relationships.len());
        let mut named = Vec::new();
        for relationship in relationships {
            let input_mask = match change {
                Change::Create => &None,
                Change::Update(mask) => mask,
            };
            let fields = fields_of(&relationship, input_mask);
            named.extend(TrustDomain::parse_name_or_id(&relationship.trust_domain));
            let changed = match change {
                Change::Create => self.create(relationship, mask).await,
                Change::Update(input_mask) => self.update(relationship, input_mask, mask).await,
            };
            call.note_item(fields, changed.as_ref());
            answers.push(answer(call, changed));
        }
        self.follow(&named).await;
        answers
    }

    async fn find(
        &self,
        request: &pb::GetFederationRelationshipRequest,
    ) -> Result<types::FederationRelationship, Refusal> {
        let trust_domain = parse(&request.trust_domain)?;
        let stored = self.stored(&trust_domain).await?;
        let relationship = match stored {
            Some(stored) => stored.relationship,
            None => {
                let declared = self.0.federation.declared(&trust_domain);
                declared
                    .ok_or_else(|| Refusal::not_found("federation relationship does not exist"))?
                    .relationship
            }
        };
        self.show(&relationship, &request.output_mask).await
    }

    async fn create(
        &self,
        message: types::FederationRelationship,
        mask: &Mask,
    ) -> Result<types::FederationRelationship, Refusal> {
        let doing = "unable to create federation relationship for server trust domain";
        let (relationship, bundle) = self.convert(message, doing)?;
        let trust_domain = relationship.trust_domain.clone();
        if let Some(declared) = self.declared_alone(&trust_domain).await? {
            return Err(Refusal::exists(format!(
                "failed to create federation relationship: {} declares it",
                declared.origin
            )));
        }
        let created = self
            .0
            .store
            .create_relationship(relationship, bundle)
            .await
            .or_refuse("failed to create federation relationship")?;
        let created = created.ok_or_else(|| {
            Refusal::exists(
                "failed to create federation relationship: federation relationship already exists",
            )
        })?;
        self.show(&created.relationship, mask).await
    }

    async fn update(
        &self,
        message: types::FederationRelationship,
        input_mask: &Mask,
        mask: &Mask,
    ) -> Result<types::FederationRelationship, Refusal> {
        let doing = "unable to update federation relationship for server trust domain";
        let (wanted, bundle) = self.convert(message, doing)?;
        let trust_domain = wanted.trust_domain.clone();
        if let Some(declared) = self.declared_alone(&trust_domain).await? {
            return Err(changes_with(&declared));
        }
        let given = input_mask.unwrap_or(types::FederationRelationshipMask {
            bundle_endpoint_url: true,
            bundle_endpoint_profile: true,
            trust_domain_bundle: true,
        });
        let patch: RelationshipPatch = Box::new(move |mut relationship| {
            if given.bundle_endpoint_url {
                relationship.endpoint_url = wanted.endpoint_url;
            }
            if given.bundle_endpoint_profile {
                relationship.profile = wanted.profile;
            }
            relationship
        });
        let bundle = bundle.filter(|_| given.trust_domain_bundle);
        let updated = self
            .0
            .store
            .update_relationship(&trust_domain, patch, bundle)
            .await
            .or_refuse("failed to update federation relationship")?;
        let updated = updated.ok_or_else(|| {
            Refusal::not_found(
                "failed to update federation relationship: federation relationship does not exist",
            )
        })?;
        self.show(&updated.relationship, mask).await
    }

    async fn delete(&self, name: &str) -> Result<(), Refusal> {
        if name.is_empty() {
            return Err(Refusal::invalid("missing trust domain"));
        }
        let trust_domain = parse(name)?;
        let deleted = self
            .0
            .store
            .delete_relationship(&trust_domain)
            .await
            .or_refuse("failed to delete federation relationship")?;
        if deleted {
            return Ok(());
        }
        match self.0.federation.declared(&trust_domain) {
            Some(declared) => Err(changes_with(&declared)),
            None => Err(Refusal::not_found("federation relationship not found")),
        }
    }

    async fn refresh(&self, name: &str) -> Result<(), Refusal> {
        let trust_domain = parse(name)?;
        let refreshed = self.0.federation.refresh(&trust_domain).await;
        let refreshed = refreshed.ok_or_else(|| {
            Refusal::not_found(format!("no relationship with trust domain \"{trust_domain}\""))
        })?;
        // Operators alone may call, and what is wrong with the endpoint is what they ask for.
        refreshed.map_err(|error| Refusal::internal(format!("failed to refresh bundle: {error}")))
    }

    /// Begins, ends or refreshes at once what the call named.
    async fn follow(&self, named: &[TrustDomain]) {
        if let Err(error) = self.0.federation.changed(named).await {
            tracing::error!(%error, "federation relationships not read");
        }
    }

    fn convert(
        &self,
        message: types::FederationRelationship,
        own: &'static str,
    ) -> Result<(Relationship, Option<Bundle>), Refusal> {
        let what = "failed to convert federation relationship";
        let relationship = wire::relationship_from_wire(&message).or_refuse(what)?;
        if relationship.trust_domain == self.0.trust_domain {
            return Err(Refusal::invalid(own));
        }
        let bundle = message
            .trust_domain_bundle
            .map(|bundle| foreign_bundle(&self.0, bundle))
            .transpose()?;
        if let Some(bundle) = &bundle
            && bundle.trust_domain != relationship.trust_domain
        {
            return Err(Refusal::invalid(format!(
                "{what}: trust domain bundle (\"{}\") must match the trust domain of the federation relationship (\"{}\")",
                bundle.trust_domain, relationship.trust_domain
            )));
        }
        Ok((relationship, bundle))
    }

    /// With the bundle that is stored, whoever stored it.
    async fn show(
        &self,
        relationship: &Relationship,
        mask: &Mask,
    ) -> Result<types::FederationRelationship, Refusal> {
        let mut message = wire::relationship_to_wire(relationship);
        if mask.is_none_or(|mask| mask.trust_domain_bundle) {
            let stored = self.0.store.bundle(&relationship.trust_domain).await;
            let stored = stored.or_refuse("failed to fetch bundle")?;
            message.trust_domain_bundle = stored.map(|stored| self.0.bundle_to_wire(&stored.bundle));
        }
        Ok(wire::apply_relationship_mask(message, mask))
    }

    async fn stored(&self, trust_domain: &TrustDomain) -> Result<Option<StoredRelationship>, Refusal> {
        let stored = self.0.store.relationship(trust_domain).await;
        stored.or_refuse("failed to fetch federation relationship")
    }

    /// What an object declares where no operator's relationship is stored.
    async fn declared_alone(&self, trust_domain: &TrustDomain) -> Result<Option<Declared>, Refusal> {
        let Some(declared) = self.0.federation.declared(trust_domain) else {
            return Ok(None);
        };
        let stored = self.stored(trust_domain).await?;
        Ok(stored.is_none().then_some(declared))
    }
}

fn parse(name: &str) -> Result<TrustDomain, Refusal> {
    TrustDomain::parse_name_or_id(name).or_refuse("failed to parse trust domain")
}

fn changes_with(declared: &Declared) -> Refusal {
    Refusal::precondition(format!(
        "federation relationship is declared by {}: change that",
        declared.origin
    ))
}

fn answer(call: &Call, outcome: Result<types::FederationRelationship, Refusal>) -> Answer {
    match outcome {
        Ok(relationship) => (Some(ok()), Some(relationship)),
        Err(refusal) => (Some(call.refuse_item(&refusal)), None),
    }
}

/// For the audit log, what of the message counts.
fn fields_of(message: &types::FederationRelationship, mask: &Mask) -> Fields {
    let mut fields = vec![(field::TRUST_DOMAIN_ID, message.trust_domain.clone())];
    if mask.is_none_or(|mask| mask.bundle_endpoint_url) {
        // Without what may hold a secret.
        let url = EndpointUrl::parse(&message.bundle_endpoint_url);
        let url = url.map_or_else(|_| "invalid".to_owned(), |url| url.to_string());
        fields.push((field::BUNDLE_ENDPOINT_URL, url));
    }
    if mask.is_none_or(|mask| mask.bundle_endpoint_profile) {
        match &message.bundle_endpoint_profile {
            None => {}
            Some(WireProfile::HttpsWeb(_)) => {
                fields.push((field::BUNDLE_ENDPOINT_PROFILE, "https_web".to_owned()));
            }
            Some(WireProfile::HttpsSpiffe(profile)) => {
                fields.push((field::BUNDLE_ENDPOINT_PROFILE, "https_spiffe".to_owned()));
                fields.push((field::ENDPOINT_SPIFFE_ID, profile.endpoint_spiffe_id.clone()));
            }
        }
    }
    fields
}
