//! The client side of the Workload API, the same for every program of ours that calls it.

use std::path::Path;

use finial_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Status};

use super::dial::{self, Channel, LARGEST_ANSWER};

/// Name and value of the metadata that every call of the Workload API carries (SPIFFE Workload Endpoint §3).
pub const SECURITY_HEADER: (&str, &str) = ("workload.spiffe.io", "true");

/// A client that sends the security header.
pub type WorkloadClient = SpiffeWorkloadApiClient<InterceptedService<Channel, SecurityHeader>>;

/// Adds the security header to every call.
#[derive(Clone, Copy, Debug)]
pub struct SecurityHeader;

impl Interceptor for SecurityHeader {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let (name, value) = SECURITY_HEADER;
        request
            .metadata_mut()
            .insert(name, MetadataValue::from_static(value));
        Ok(request)
    }
}

/// A client over an open channel, ready for answers of any size that an agent sends.
pub fn client(channel: Channel) -> WorkloadClient {
    SpiffeWorkloadApiClient::with_interceptor(channel, SecurityHeader)
        .max_decoding_message_size(LARGEST_ANSWER)
}

/// Connects to the Workload API at the Unix socket `path`.
///
/// # Errors
/// When nobody listens there.
pub async fn connect(path: &Path) -> Result<WorkloadClient, tonic::transport::Error> {
    dial::connect(path).await.map(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_carries_the_header_once() {
        let request = SecurityHeader.call(Request::new(())).unwrap();
        let values: Vec<_> = request.metadata().get_all("workload.spiffe.io").iter().collect();
        assert_eq!(values, ["true"]);
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(connect(&dir.path().join("absent.sock")).await.is_err());
    }
}
