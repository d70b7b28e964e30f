//! A customer of the shop: calls the services, through the router or directly.

use std::time::Duration;

use anyhow::{Context, Result};
use titan_proto::cart::v1::cart_service_client::CartServiceClient;
use titan_proto::cart::v1::{self as cart, AddRequest, UpdateRequest};
use titan_proto::order::v1::order_service_client::OrderServiceClient;
use titan_proto::order::v1::{CreateFromSagaRequest, GetRequest, LineInput, Money, Order};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use uuid::Uuid;

/// The port of the order service.
pub const ORDER_PORT: u16 = 50001;
/// The port of the router.
pub const ROUTER_PORT: u16 = 8080;

/// A connection to the router, or to a pod.
#[derive(Clone)]
pub struct Shop {
    orders: OrderServiceClient<Channel>,
    carts: CartServiceClient<Channel>,
}

impl Shop {
    pub fn at(address: &str) -> Result<Self> {
        let channel = Endpoint::from_shared(address.to_owned())
            .with_context(|| format!("{address} is no address"))?
            .connect_timeout(Duration::from_secs(2))
            .timeout(Duration::from_secs(10))
            .connect_lazy();
        Ok(Shop {
            orders: OrderServiceClient::new(channel.clone()),
            carts: CartServiceClient::new(channel),
        })
    }

    /// Places an order for one thing. The same `idempotency_key` places the same order.
    pub async fn place(&self, key: u64, idempotency_key: Uuid) -> Result<Order, Status> {
        self.place_some(key, idempotency_key, 1).await
    }

    /// Places an order for so many of a thing.
    pub async fn place_some(
        &self,
        key: u64,
        idempotency_key: Uuid,
        quantity: u32,
    ) -> Result<Order, Status> {
        let euros = |minor_units| {
            Some(Money {
                minor_units,
                currency: "EUR".to_owned(),
            })
        };
        let request = CreateFromSagaRequest {
            saga_id: idempotency_key.to_string(),
            lines: vec![LineInput {
                sku: "teapot-blue".to_owned(),
                seller_id: 7,
                quantity,
                unit_price: euros(1999),
                title: "Blue teapot".to_owned(),
            }],
            shipping: euros(499),
            discount: euros(0),
            paid: true,
        };
        let mut request = with_key(request, key)?;
        request
            .metadata_mut()
            .insert("idempotency-key", text(&idempotency_key.to_string())?);
        Ok(self
            .orders
            .clone()
            .create_from_saga(request)
            .await?
            .into_inner())
    }

    pub async fn get(&self, key: u64, id: &str) -> Result<Order, Status> {
        let request = with_key(GetRequest { id: id.to_owned() }, key)?;
        Ok(self.orders.clone().get(request).await?.into_inner())
    }

    /// Sets how many of a thing are in the customer's cart: 1 adds it, for it is not there yet.
    pub async fn put_in_cart(
        &self,
        key: u64,
        idempotency_key: Uuid,
        sku: &str,
        quantity: u32,
    ) -> Result<(), Status> {
        let mut carts = self.carts.clone();
        let once = text(&idempotency_key.to_string())?;
        if quantity > 1 {
            let mut request = with_key(
                UpdateRequest {
                    sku: sku.to_owned(),
                    quantity,
                    expected_version: None,
                },
                key,
            )?;
            request.metadata_mut().insert("idempotency-key", once);
            return carts.update(request).await.map(drop);
        }
        let line = cart::LineInput {
            sku: sku.to_owned(),
            seller_id: 7,
            quantity,
            unit_price: Some(cart::Money {
                minor_units: 1999,
                currency: "EUR".to_owned(),
            }),
            title: "Blue teapot".to_owned(),
        };
        let mut request = with_key(
            AddRequest {
                line: Some(line),
                expected_version: None,
            },
            key,
        )?;
        request.metadata_mut().insert("idempotency-key", once);
        carts.add(request).await.map(drop)
    }

    /// How many of a thing are in the customer's cart.
    pub async fn in_cart(&self, key: u64, sku: &str) -> Result<u32, Status> {
        let request = with_key(cart::GetRequest {}, key)?;
        let cart = self.carts.clone().get(request).await?.into_inner();
        let line = cart.lines.iter().find(|line| line.sku == sku);
        Ok(line.map_or(0, |line| line.quantity))
    }
}

fn with_key<T>(message: T, key: u64) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("x-titan-key", text(&key.to_string())?);
    Ok(request)
}

fn text(value: &str) -> Result<MetadataValue<Ascii>, Status> {
    value
        .parse()
        .map_err(|_| Status::internal("a header value of a scenario is not ASCII"))
}
