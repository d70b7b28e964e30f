//! The cart service: carts in Redis, written through to PostgreSQL.

mod cache;
mod commands;
pub mod domain;
mod store;
mod watch;
mod wire;

use std::pin::Pin;

use cache::Cache;
use cell_kit::{
    Caller, Context, Database, IDEMPOTENCY_KEYS, Key, Service, StartError, Store, Table, TableClass,
};
use futures::Stream;
use prost::Message;
use sqlx::migrate::Migrator;
use store::Stored;
use titan_proto::cart::v1 as proto;
use titan_proto::cart::v1::cart_service_server::{CartService, CartServiceServer};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/cart");

/// The definition.
pub static SERVICE: Service = Service {
    name: "cart",
    port: 50003,
    grpc: &["titan.cart.v1.CartService"],
    descriptor: proto::FILE_DESCRIPTOR_SET,
    migrations: &MIGRATIONS,
    tables: &[
        Table {
            name: "carts",
            class: TableClass::Owned,
        },
        Table {
            name: "cart_merges",
            class: TableClass::Owned,
        },
        IDEMPOTENCY_KEYS,
    ],
    topics: &[],
    stores: &[Store::Postgres, Store::Redis],
    workers: &["idempotency-retention"],
    build: |context: Context| {
        Box::pin(async move {
            let redis = context
                .redis
                .ok_or_else(|| StartError::Other("the cart needs Redis".to_owned()))?;
            let carts = Carts {
                database: context.database,
                cache: Cache::new(redis, &context.metrics)
                    .map_err(|error| StartError::Telemetry(error.to_string()))?,
                draining: context.draining,
            };
            Ok(Routes::new(CartServiceServer::new(carts)))
        })
    },
};

#[derive(Clone, Debug)]
struct Carts {
    database: Database,
    cache: Cache,
    draining: CancellationToken,
}

type Answer<T> = Result<Response<T>, Status>;

impl Carts {
    /// The cart, from Redis when it is there, else from PostgreSQL, which also fills Redis.
    async fn read(&self, owner: Key) -> Result<Stored, Status> {
        if let Some(stored) = self.cache.get(owner).await {
            return Ok(stored);
        }
        let stored = self
            .database
            .read(move |connection| store::read(connection, owner))
            .await?;
        self.cache.put(owner, &stored).await;
        Ok(stored)
    }

    /// Executes a change in PostgreSQL and writes it through. While Redis has the old cart it must not answer with
    /// it, so the old one leaves before the new one is committed.
    async fn change<M>(
        &self,
        request: Request<M>,
        effect: for<'t> fn(&'t mut cell_kit::Tx, &'t M) -> cell_kit::Effect<'t, proto::Cart>,
    ) -> Answer<proto::Cart>
    where
        M: Message + 'static,
    {
        let owner = Caller::of(&request)?.owner.key;
        self.cache.forget(owner).await;
        let answer = self.database.mutate(request, effect).await?;
        // A replayed answer may be an old one: what Redis should hold is the cart's.
        if answer.metadata().get(cell_kit::headers::REPLAYED).is_none() {
            self.cache
                .put(owner, &Stored::from_wire(answer.get_ref())?)
                .await;
        }
        self.cache.changed(owner);
        Ok(answer)
    }
}

#[tonic::async_trait]
impl CartService for Carts {
    async fn get(&self, request: Request<proto::GetRequest>) -> Answer<proto::Cart> {
        let owner = Caller::of(&request)?.owner.key;
        Ok(Response::new(self.read(owner).await?.to_wire(owner)))
    }

    async fn add(&self, request: Request<proto::AddRequest>) -> Answer<proto::Cart> {
        self.change(request, commands::add).await
    }

    async fn update(&self, request: Request<proto::UpdateRequest>) -> Answer<proto::Cart> {
        self.change(request, commands::update).await
    }

    async fn remove(&self, request: Request<proto::RemoveRequest>) -> Answer<proto::Cart> {
        self.change(request, commands::remove).await
    }

    async fn merge_guest(&self, request: Request<proto::MergeGuestRequest>) -> Answer<proto::Cart> {
        self.change(request, commands::merge_guest).await
    }

    async fn price(&self, request: Request<proto::PriceRequest>) -> Answer<proto::PriceResponse> {
        let owner = Caller::of(&request)?.owner.key;
        Ok(Response::new(wire::price(&self.read(owner).await?)?))
    }

    async fn validate(
        &self,
        request: Request<proto::ValidateRequest>,
    ) -> Answer<proto::ValidateResponse> {
        let owner = Caller::of(&request)?.owner.key;
        Ok(Response::new(wire::validation(
            &self.read(owner).await?,
            owner,
        )))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<proto::Cart, Status>> + Send>>;

    async fn watch(&self, request: Request<proto::WatchRequest>) -> Answer<Self::WatchStream> {
        let owner = Caller::of(&request)?.owner;
        Ok(Response::new(Box::pin(watch::stream(self.clone(), owner))))
    }
}
