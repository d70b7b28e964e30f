//! The user service: profiles, addresses, preferences, blocks; export and erasure.

pub mod address_book;
mod addresses;
mod blocks;
mod fields;
mod preferences;
mod privacy;
mod profile;

use cell_kit::{Context, Database, IDEMPOTENCY_KEYS, Service, Store, Table, TableClass};
use sqlx::migrate::Migrator;
use titan_proto::user::v1::user_service_server::{UserService, UserServiceServer};
use titan_proto::user::v1::{
    AddAddressRequest, Address, BlockRequest, BlockResponse, CreateProfileRequest, EraseRequest,
    EraseResponse, ExportRequest, ExportResponse, FILE_DESCRIPTOR_SET, GetPreferencesRequest,
    GetProfileRequest, ListAddressesRequest, ListAddressesResponse, ListBlockedRequest,
    ListBlockedResponse, Preferences, Profile, RemoveAddressRequest, RemoveAddressResponse,
    SetDefaultAddressRequest, SetPreferencesRequest, UnblockRequest, UnblockResponse,
    UpdateAddressRequest, UpdateProfileRequest,
};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/user");

/// The definition.
pub static SERVICE: Service = Service {
    name: "user",
    port: 50020,
    grpc: &["titan.user.v1.UserService"],
    descriptor: FILE_DESCRIPTOR_SET,
    migrations: &MIGRATIONS,
    tables: &[
        Table {
            name: "profiles",
            class: TableClass::Owned,
        },
        Table {
            name: "addresses",
            class: TableClass::Owned,
        },
        Table {
            name: "preferences",
            class: TableClass::Owned,
        },
        Table {
            name: "blocks",
            class: TableClass::Owned,
        },
        Table {
            name: "erasures",
            class: TableClass::Owned,
        },
        IDEMPOTENCY_KEYS,
    ],
    topics: &[],
    stores: &[Store::Postgres],
    workers: &["idempotency-retention"],
    build: |context: Context| {
        Box::pin(async move {
            Ok(Routes::new(UserServiceServer::new(User {
                database: context.database,
            })))
        })
    },
};

#[derive(Debug)]
struct User {
    database: Database,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl UserService for User {
    async fn create_profile(&self, request: Request<CreateProfileRequest>) -> Answer<Profile> {
        self.database.mutate(request, profile::create).await
    }

    async fn get_profile(&self, request: Request<GetProfileRequest>) -> Answer<Profile> {
        self.database.answer(request, profile::read).await
    }

    async fn update_profile(&self, request: Request<UpdateProfileRequest>) -> Answer<Profile> {
        self.database.mutate(request, profile::update).await
    }

    async fn add_address(&self, request: Request<AddAddressRequest>) -> Answer<Address> {
        self.database.mutate(request, addresses::add).await
    }

    async fn update_address(&self, request: Request<UpdateAddressRequest>) -> Answer<Address> {
        self.database.mutate(request, addresses::update).await
    }

    async fn remove_address(
        &self,
        request: Request<RemoveAddressRequest>,
    ) -> Answer<RemoveAddressResponse> {
        self.database.mutate(request, addresses::remove).await
    }

    async fn set_default_address(
        &self,
        request: Request<SetDefaultAddressRequest>,
    ) -> Answer<Address> {
        self.database.mutate(request, addresses::set_default).await
    }

    async fn list_addresses(
        &self,
        request: Request<ListAddressesRequest>,
    ) -> Answer<ListAddressesResponse> {
        self.database.answer(request, addresses::list).await
    }

    async fn get_preferences(
        &self,
        request: Request<GetPreferencesRequest>,
    ) -> Answer<Preferences> {
        self.database.answer(request, preferences::read).await
    }

    async fn set_preferences(
        &self,
        request: Request<SetPreferencesRequest>,
    ) -> Answer<Preferences> {
        self.database.mutate(request, preferences::set).await
    }

    async fn block(&self, request: Request<BlockRequest>) -> Answer<BlockResponse> {
        self.database.mutate(request, blocks::block).await
    }

    async fn unblock(&self, request: Request<UnblockRequest>) -> Answer<UnblockResponse> {
        self.database.mutate(request, blocks::unblock).await
    }

    async fn list_blocked(
        &self,
        request: Request<ListBlockedRequest>,
    ) -> Answer<ListBlockedResponse> {
        self.database.answer(request, blocks::list).await
    }

    async fn export(&self, request: Request<ExportRequest>) -> Answer<ExportResponse> {
        self.database.answer(request, privacy::export).await
    }

    async fn erase(&self, request: Request<EraseRequest>) -> Answer<EraseResponse> {
        self.database.mutate(request, privacy::erase).await
    }
}
