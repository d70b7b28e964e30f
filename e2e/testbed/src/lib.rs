//! Real servers on loopback for tests.
//!
//! Each kind comes in two forms: a function that hands out a server shared by the whole test process
//! ([`postgres`], [`kafka`], [`apiserver`]), started on first use, and a `start` on its type for a test that
//! needs one of its own, stopped when dropped. Redis costs 50 ms, so [`redis`] always starts a fresh one.
//!
//! Every server takes a free port from the kernel, keeps its data in a folder of its own, and dies with the
//! test process, however that ends. All calls block, for a few seconds at most, and may be made from async
//! tests and from several threads.
//!
//! The binaries come from Debian packages and from the cache that `cargo titan tools` fills.
//!
//! ```no_run
//! # fn main() -> Result<(), titan_testbed::Error> {
//! let database = titan_testbed::postgres()?; // a fresh database on a shared server
//! println!("{}", database.url());
//! let redis = titan_testbed::redis()?;
//! println!("{}", redis.url());
//! let cluster = titan_testbed::apiserver()?;
//! cluster.apply(std::path::Path::new("crds/manifests"))?;
//! println!("{}", cluster.kubeconfig().display());
//! # Ok(())
//! # }
//! ```

pub mod apiserver;
pub mod cache;
mod error;
pub mod kafka;
pub mod pki;
pub mod postgres;
pub mod process;
pub mod redis;
pub mod standby;

pub use apiserver::{Apiserver, apiserver};
pub use error::{Error, Result};
pub use kafka::{Kafka, kafka};
pub use postgres::{Database, Postgres, postgres};
pub use redis::{Redis, redis};
pub use standby::Standby;
