//! What messages look like: the `.proto` files in `schema/` and the code generated from them, nothing else.
//!
//! Modules follow the protobuf packages: `spire` is the API of SPIRE's server and agent, [`workload`] the
//! SPIFFE Workload API (which has no package), [`spiffe`] the SPIFFE Broker API, [`envoy`] the part of Envoy's
//! API that its secret discovery needs, [`google`] and [`grpc`] what gRPC itself defines, [`csi`] and
//! [`pluginregistration`] what a kubelet speaks with drivers, and [`finial`] what SPIRE lacks. Fields, numbers and names
//! are fixed by the peers; what a message means stands in `finial-identity`.
//!
//! Rust names follow prost: `SPIFFEID` is `Spiffeid`, `X509SVID` is `X509svid`, oneofs and nested messages live
//! in a module named after their message. Wrapper messages are `Option`s, maps are `BTreeMap`s, and `bytes` are
//! `Vec<u8>`, except in the Workload API, the Delegated Identity API and Envoy's messages, where they are
//! `bytes::Bytes`. `Debug` of a message shows no private key and no bearer token.

mod redaction;

/// All files as an encoded `google.protobuf.FileDescriptorSet`, imports included, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("finial_descriptor");

/// Includes the code that was generated for one package.
macro_rules! package {
    ($name:literal) => {
        include!(concat!(env!("OUT_DIR"), "/", $name, ".rs"));
    };
}

/// The SPIFFE Workload API, which has no protobuf package.
#[allow(clippy::all, missing_debug_implementations, reason = "generated code")]
pub mod workload {
    package!("_");
}

/// Protocols of SPIRE.
#[allow(clippy::all, missing_debug_implementations, reason = "generated code")]
pub mod spire {
    /// `spire.api`
    pub mod api {
        /// Messages that the services share.
        pub mod types {
            package!("spire.api.types");
        }
        /// Services of the server.
        pub mod server {
            /// Attested nodes.
            pub mod agent {
                /// `spire.api.server.agent.v1`
                pub mod v1 {
                    package!("spire.api.server.agent.v1");
                }
            }
            /// Bundles.
            pub mod bundle {
                /// `spire.api.server.bundle.v1`
                pub mod v1 {
                    package!("spire.api.server.bundle.v1");
                }
            }
            /// A look at the running server.
            pub mod debug {
                /// `spire.api.server.debug.v1`
                pub mod v1 {
                    package!("spire.api.server.debug.v1");
                }
            }
            /// Registration entries.
            pub mod entry {
                /// `spire.api.server.entry.v1`
                pub mod v1 {
                    package!("spire.api.server.entry.v1");
                }
            }
            /// The server's own authorities.
            pub mod localauthority {
                /// `spire.api.server.localauthority.v1`
                pub mod v1 {
                    package!("spire.api.server.localauthority.v1");
                }
            }
            /// The server's log level.
            pub mod logger {
                /// `spire.api.server.logger.v1`
                pub mod v1 {
                    package!("spire.api.server.logger.v1");
                }
            }
            /// Signing.
            pub mod svid {
                /// `spire.api.server.svid.v1`
                pub mod v1 {
                    package!("spire.api.server.svid.v1");
                }
            }
            /// Federation relationships.
            pub mod trustdomain {
                /// `spire.api.server.trustdomain.v1`
                pub mod v1 {
                    package!("spire.api.server.trustdomain.v1");
                }
            }
        }
        /// Services of the agent.
        pub mod agent {
            /// Identities on behalf of other workloads.
            pub mod delegatedidentity {
                /// `spire.api.agent.delegatedidentity.v1`
                pub mod v1 {
                    package!("spire.api.agent.delegatedidentity.v1");
                }
            }
            /// The agent's log level.
            pub mod logger {
                /// `spire.api.agent.logger.v1`
                pub mod v1 {
                    package!("spire.api.agent.logger.v1");
                }
            }
        }
    }
    /// `spire.agent`
    pub mod agent {
        /// A look at the running agent.
        pub mod debug {
            /// `spire.agent.debug.v1`
            pub mod v1 {
                package!("spire.agent.debug.v1");
            }
        }
    }
}

/// Protocols of SPIFFE that have a package.
#[allow(clippy::all, missing_debug_implementations, reason = "generated code")]
pub mod spiffe {
    /// The SPIFFE Broker API.
    pub mod broker {
        package!("spiffe.broker");
    }
}

/// The part of Envoy's API that its secret discovery needs.
#[allow(clippy::all, missing_debug_implementations, reason = "generated code")]
pub mod envoy {
    /// `envoy.service`
    pub mod service {
        /// Secret discovery.
        pub mod secret {
            /// `envoy.service.secret.v3`
            pub mod v3 {
                package!("envoy.service.secret.v3");
            }
        }
        /// Requests and responses of every discovery service.
        pub mod discovery {
            /// `envoy.service.discovery.v3`
            pub mod v3 {
                package!("envoy.service.discovery.v3");
            }
        }
    }
    /// `envoy.config`
    pub mod config {
        /// Who asks, and where data comes from.
        pub mod core {
            /// `envoy.config.core.v3`
            pub mod v3 {
                package!("envoy.config.core.v3");
            }
        }
    }
    /// `envoy.extensions`
    pub mod extensions {
        /// `envoy.extensions.transport_sockets`
        pub mod transport_sockets {
            /// Certificates and validation contexts.
            pub mod tls {
                /// `envoy.extensions.transport_sockets.tls.v3`
                pub mod v3 {
                    package!("envoy.extensions.transport_sockets.tls.v3");
                }
            }
        }
    }
    /// `envoy.type`
    pub mod r#type {
        /// Conditions on texts.
        pub mod matcher {
            /// `envoy.type.matcher.v3`
            pub mod v3 {
                package!("envoy.r#type.matcher.v3");
            }
        }
        /// `envoy.type.v3`
        pub mod v3 {
            package!("envoy.r#type.v3");
        }
    }
}

/// What gRPC's errors carry.
#[allow(clippy::all, missing_debug_implementations, reason = "generated code")]
pub mod google {
    /// `google.rpc`
    pub mod rpc {
        package!("google.rpc");
    }
}

/// Services that gRPC defines.
#[allow(clippy::all, missing_debug_implementations, reason = "generated code")]
pub mod grpc {
    /// Health checks.
    pub mod health {
        /// `grpc.health.v1`
        pub mod v1 {
            package!("grpc.health.v1");
        }
    }
}

/// The Container Storage Interface, as far as a driver for ephemeral volumes needs it.
#[allow(clippy::all, missing_debug_implementations, reason = "generated code")]
pub mod csi {
    /// `csi.v1`
    pub mod v1 {
        package!("csi.v1");
    }
}

/// How the kubelet learns of plugins.
#[allow(clippy::all, missing_debug_implementations, reason = "generated code")]
pub mod pluginregistration {
    package!("pluginregistration");
}

/// Protocols that SPIRE lacks.
#[allow(clippy::all, missing_debug_implementations, reason = "generated code")]
pub mod finial {
    /// `finial.agent`
    pub mod agent {
        /// Why a process has the identities it has.
        pub mod explain {
            /// `finial.agent.explain.v1`
            pub mod v1 {
                package!("finial.agent.explain.v1");
            }
        }
    }
    /// `finial.server`
    pub mod server {
        /// Why a pod has the identities it has.
        pub mod explain {
            /// `finial.server.explain.v1`
            pub mod v1 {
                package!("finial.server.explain.v1");
            }
        }
        /// What the server holds in memory of its store.
        pub mod registry {
            /// `finial.server.registry.v1`
            pub mod v1 {
                package!("finial.server.registry.v1");
            }
        }
        /// Push to agents.
        pub mod sync {
            /// `finial.server.sync.v1`
            pub mod v1 {
                package!("finial.server.sync.v1");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_called_by_the_names_that_peers_use() {
        let names = [
            workload::spiffe_workload_api_server::SERVICE_NAME,
            spiffe::broker::api_server::SERVICE_NAME,
            spire::agent::debug::v1::debug_server::SERVICE_NAME,
            spire::api::server::svid::v1::svid_server::SERVICE_NAME,
            envoy::service::secret::v3::secret_discovery_service_server::SERVICE_NAME,
            finial::server::sync::v1::sync_server::SERVICE_NAME,
        ];
        assert_eq!(
            names,
            [
                "SpiffeWorkloadAPI",
                "spiffe.broker.API",
                "spire.agent.debug.v1.Debug",
                "spire.api.server.svid.v1.SVID",
                "envoy.service.secret.v3.SecretDiscoveryService",
                "finial.server.sync.v1.Sync",
            ]
        );
    }

    #[test]
    fn equal_maps_give_equal_bytes() {
        use prost::Message;
        let encoded = |names: [&'static str; 3]| {
            let bundles = names.map(|name| (name.to_owned(), name.into())).into();
            workload::X509BundlesResponse {
                bundles,
                ..Default::default()
            }
            .encode_to_vec()
        };
        let bytes = encoded(["spiffe://c", "spiffe://a", "spiffe://b"]);
        assert_eq!(bytes, encoded(["spiffe://b", "spiffe://c", "spiffe://a"]));
        let position = |name: &str| {
            bytes
                .windows(name.len())
                .position(|window| window == name.as_bytes())
        };
        assert!(
            position("spiffe://a") < position("spiffe://b")
                && position("spiffe://b") < position("spiffe://c")
        );
    }
}
