//! One cell: from its spec to everything it consists of.

mod model;

pub use model::{
    Credentials, Desired, Invalid, KafkaTopic, PostgresPlan, RedisPlan, ServerCredentials,
    ServiceSchema, StoreStorage, ValidatedCell, ValidatedService,
};
