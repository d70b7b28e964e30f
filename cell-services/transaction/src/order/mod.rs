//! The order service: event-sourced orders, whose events leave by the outbox.

mod commands;
pub mod domain;
mod queries;
mod store;
mod wire;

use cell_kit::{
    Context, Database, IDEMPOTENCY_KEYS, OUTBOX, Service, Store, Table, TableClass, Topic,
};
use sqlx::migrate::Migrator;
use titan_proto::order::v1::order_service_server::{OrderService, OrderServiceServer};
use titan_proto::order::v1::{
    CancelRequest, CreateFromSagaRequest, FILE_DESCRIPTOR_SET, GetRequest, ListRequest,
    ListResponse, Order, ReturnRequest, ReturnResponse, SplitBySellerRequest, TimelineRequest,
    TimelineResponse, TransitionRequest,
};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/order");

/// The topic of everything that happens to orders.
const EVENTS: Topic = Topic {
    name: "order.events",
    partitions: 6,
    retention_hours: 24 * 7,
};

/// The definition.
pub static SERVICE: Service = Service {
    name: "order",
    port: 50001,
    grpc: &["titan.order.v1.OrderService"],
    descriptor: FILE_DESCRIPTOR_SET,
    migrations: &MIGRATIONS,
    tables: &[
        Table {
            name: "orders",
            class: TableClass::Owned,
        },
        Table {
            name: "order_events",
            class: TableClass::Owned,
        },
        IDEMPOTENCY_KEYS,
        OUTBOX,
    ],
    topics: &[EVENTS],
    stores: &[Store::Postgres, Store::Kafka],
    workers: &["outbox-publisher", "idempotency-retention"],
    build: |context: Context| {
        Box::pin(async move {
            Ok(Routes::new(OrderServiceServer::new(Orders {
                database: context.database,
            })))
        })
    },
};

#[derive(Debug)]
struct Orders {
    database: Database,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl OrderService for Orders {
    async fn create_from_saga(&self, request: Request<CreateFromSagaRequest>) -> Answer<Order> {
        self.database
            .mutate(request, commands::create_from_saga)
            .await
    }

    async fn get(&self, request: Request<GetRequest>) -> Answer<Order> {
        self.database.answer(request, queries::get).await
    }

    async fn list(&self, request: Request<ListRequest>) -> Answer<ListResponse> {
        self.database.answer(request, queries::list).await
    }

    async fn cancel(&self, request: Request<CancelRequest>) -> Answer<Order> {
        self.database.mutate(request, commands::cancel).await
    }

    async fn transition(&self, request: Request<TransitionRequest>) -> Answer<Order> {
        self.database.mutate(request, commands::transition).await
    }

    async fn split_by_seller(&self, request: Request<SplitBySellerRequest>) -> Answer<Order> {
        self.database
            .mutate(request, commands::split_by_seller)
            .await
    }

    async fn r#return(&self, request: Request<ReturnRequest>) -> Answer<ReturnResponse> {
        self.database.mutate(request, commands::return_lines).await
    }

    async fn timeline(&self, request: Request<TimelineRequest>) -> Answer<TimelineResponse> {
        self.database.answer(request, queries::timeline).await
    }
}
