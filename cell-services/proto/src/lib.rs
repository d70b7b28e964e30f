//! The gRPC contracts of the services: one module a package, and its file descriptor set for reflection.

#![allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    reason = "the code is generated; the .proto files carry the documentation"
)]

macro_rules! package {
    ($service:ident) => {
        pub mod $service {
            pub mod v1 {
                include!(concat!(
                    env!("OUT_DIR"),
                    "/titan.",
                    stringify!($service),
                    ".v1.rs"
                ));

                pub const FILE_DESCRIPTOR_SET: &[u8] =
                    include_bytes!(concat!(env!("OUT_DIR"), "/", stringify!($service), ".bin"));
            }
        }
    };
}

package!(cart);
package!(order);
package!(user);
