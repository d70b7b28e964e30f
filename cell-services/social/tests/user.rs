//! The user service against real PostgreSQL.

#![allow(clippy::unwrap_used, reason = "a test")]

use cell_conformance::{Cell, MINE, fresh, key, passes, with_key};
use prost::Message;
use titan_proto::user::v1::user_service_client::UserServiceClient;
use titan_proto::user::v1::{
    AddAddressRequest, Address, AddressFields, BlockRequest, CreateProfileRequest, EraseRequest,
    ExportRequest, GetPreferencesRequest, GetProfileRequest, ListAddressesRequest,
    ListBlockedRequest, Preferences, RemoveAddressRequest, SetDefaultAddressRequest,
    SetPreferencesRequest, UnblockRequest, UpdateProfileRequest,
};
use titan_social::user::SERVICE;
use tonic::Code;
use tonic::transport::Channel;

type Client = UserServiceClient<Channel>;

async fn start() -> anyhow::Result<(Cell, Client)> {
    let cell = Cell::start(&SERVICE).await?;
    let client = Client::new(cell.channel().await?);
    Ok((cell, client))
}

fn profile(name: &str) -> CreateProfileRequest {
    CreateProfileRequest {
        display_name: name.to_owned(),
        email: "Mei@Example.com".to_owned(),
        phone: "+6591234567".to_owned(),
        ..Default::default()
    }
}

fn address(line1: &str) -> Option<AddressFields> {
    Some(AddressFields {
        recipient: "Mei".to_owned(),
        line1: line1.to_owned(),
        city: "Singapore".to_owned(),
        country: "sg".to_owned(),
        ..Default::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_the_promises_of_the_kit() -> anyhow::Result<()> {
    passes(&SERVICE, |channel, request| {
        Box::pin(async move {
            let request = request.map(|variant| profile(&format!("name {variant}")));
            let answer = Client::new(channel).create_profile(request).await?;
            Ok((answer.get_ref().encode_to_vec(), answer.metadata().clone()))
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_is_made_once_and_changes_by_version() -> anyhow::Result<()> {
    let (_cell, mut client) = start().await?;
    let owner = key(MINE);
    let missing = client
        .get_profile(fresh(owner, GetProfileRequest {}))
        .await
        .unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let made = client
        .create_profile(fresh(owner, profile("Mei")))
        .await?
        .into_inner();
    assert_eq!(
        (made.user_id, made.version, made.email.as_str()),
        (MINE, 1, "mei@example.com")
    );
    let again = client
        .create_profile(fresh(owner, profile("Mei")))
        .await
        .unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);

    let change = |version| UpdateProfileRequest {
        expected_version: version,
        display_name: Some("Mei Lin".to_owned()),
        phone: Some(String::new()),
        ..Default::default()
    };
    let changed = client
        .update_profile(fresh(owner, change(1)))
        .await?
        .into_inner();
    assert_eq!(
        (
            changed.display_name.as_str(),
            changed.phone.as_str(),
            changed.version
        ),
        ("Mei Lin", "", 2)
    );
    assert_eq!(changed.email, "mei@example.com");
    let stale = client
        .update_profile(fresh(owner, change(1)))
        .await
        .unwrap_err();
    assert_eq!(stale.code(), Code::Aborted);

    for wrong in [
        CreateProfileRequest {
            display_name: " ".to_owned(),
            ..profile("x")
        },
        CreateProfileRequest {
            email: "nobody".to_owned(),
            ..profile("x")
        },
        CreateProfileRequest {
            phone: "91234567".to_owned(),
            ..profile("x")
        },
        CreateProfileRequest {
            avatar_url: "http://example.com".to_owned(),
            ..profile("x")
        },
    ] {
        let refused = client
            .create_profile(fresh(key(MINE + 1), wrong))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_one_default_address_whatever_happens() -> anyhow::Result<()> {
    let (cell, mut client) = start().await?;
    let owner = key(MINE);
    client.create_profile(fresh(owner, profile("Mei"))).await?;
    let mut ids = Vec::new();
    for number in 0..5 {
        let request = AddAddressRequest {
            fields: address(&format!("{number} Orchard Road")),
            make_default: number == 3,
        };
        let added = client
            .add_address(fresh(owner, request))
            .await?
            .into_inner();
        assert_eq!(added.is_default, number == 0 || number == 3);
        ids.push(added.id);
    }
    // Many at once: the last one wins, whichever that is, and there is one.
    let calls = (0..20).map(|turn| {
        let (mut client, id) = (client.clone(), ids[turn % 5].clone());
        tokio::spawn(async move {
            client
                .set_default_address(fresh(owner, SetDefaultAddressRequest { id }))
                .await
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await??;
    }
    let defaults: i64 = sqlx::query_scalar("SELECT count(*) FROM addresses WHERE is_default")
        .fetch_one(&cell.admin)
        .await?;
    assert_eq!(defaults, 1);

    // Pages of two, the newest first.
    let mut seen: Vec<Address> = Vec::new();
    let mut cursor = String::new();
    loop {
        let request = ListAddressesRequest {
            page_size: 2,
            page_cursor: cursor,
        };
        let page = client
            .list_addresses(fresh(owner, request))
            .await?
            .into_inner();
        seen.extend(page.addresses);
        cursor = page.next_page_cursor;
        if cursor.is_empty() {
            break;
        }
    }
    ids.reverse();
    assert_eq!(
        seen.iter()
            .map(|address| address.id.clone())
            .collect::<Vec<_>>(),
        ids
    );
    assert_eq!(seen[0].fields.as_ref().unwrap().country, "SG");

    client
        .set_default_address(fresh(
            owner,
            SetDefaultAddressRequest { id: ids[2].clone() },
        ))
        .await?;
    let left = client
        .remove_address(fresh(owner, RemoveAddressRequest { id: ids[2].clone() }))
        .await?
        .into_inner();
    assert_eq!(left.default_id, ids[0], "the newest that is left");
    let other = client
        .remove_address(fresh(
            key(MINE + 1),
            RemoveAddressRequest { id: ids[0].clone() },
        ))
        .await;
    assert_eq!(
        other.unwrap_err().code(),
        Code::NotFound,
        "another user's address"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_belongs_to_its_list_and_user() -> anyhow::Result<()> {
    let (_cell, mut client) = start().await?;
    for owner in [key(MINE), key(MINE + 1)] {
        client.create_profile(fresh(owner, profile("Mei"))).await?;
        for blocked in 1..=3 {
            client
                .block(fresh(owner, BlockRequest { user_id: blocked }))
                .await?;
        }
    }
    let request = |cursor: &str| ListBlockedRequest {
        page_size: 2,
        page_cursor: cursor.to_owned(),
    };
    let page = client
        .list_blocked(fresh(key(MINE), request("")))
        .await?
        .into_inner();
    assert_eq!(page.user_ids, [3, 2]);
    let next = client
        .list_blocked(fresh(key(MINE), request(&page.next_page_cursor)))
        .await?
        .into_inner();
    assert_eq!(
        (next.user_ids.as_slice(), next.next_page_cursor.as_str()),
        (&[1][..], "")
    );
    for (owner, cursor) in [
        (key(MINE + 1), page.next_page_cursor.as_str()),
        (key(MINE), "AAAA"),
        (key(MINE), "%"),
    ] {
        let refused = client
            .list_blocked(fresh(owner, request(cursor)))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let request = ListAddressesRequest {
        page_size: 2,
        page_cursor: page.next_page_cursor,
    };
    assert_eq!(
        client
            .list_addresses(fresh(key(MINE), request))
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument
    );

    assert!(
        client
            .unblock(fresh(key(MINE), UnblockRequest { user_id: 2 }))
            .await?
            .into_inner()
            .removed
    );
    assert!(
        !client
            .unblock(fresh(key(MINE), UnblockRequest { user_id: 2 }))
            .await?
            .into_inner()
            .removed
    );
    assert_eq!(
        client
            .block(fresh(key(MINE), BlockRequest { user_id: MINE }))
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn erasure_leaves_nothing_personal() -> anyhow::Result<()> {
    let (cell, mut client) = start().await?;
    let (owner, bystander) = (key(MINE), key(MINE + 1));
    for user in [owner, bystander] {
        client
            .create_profile(fresh(user, profile("Secret-Name")))
            .await?;
        client
            .add_address(fresh(
                user,
                AddAddressRequest {
                    fields: address("Secret-Road 1"),
                    make_default: true,
                },
            ))
            .await?;
        let preferences = Some(Preferences {
            currency: "SGD".to_owned(),
            switches: [("secret".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        });
        client
            .set_preferences(fresh(user, SetPreferencesRequest { preferences }))
            .await?;
        client
            .block(fresh(user, BlockRequest { user_id: 77 }))
            .await?;
    }
    let export = client
        .export(fresh(owner, ExportRequest {}))
        .await?
        .into_inner()
        .json;
    for fact in [
        "Secret-Name",
        "Secret-Road 1",
        "SGD",
        "77",
        "mei@example.com",
    ] {
        assert!(export.contains(fact), "{fact} is not in {export}");
    }

    let wrong = client
        .erase(fresh(owner, EraseRequest { confirm_user_id: 1 }))
        .await
        .unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    let erase = EraseRequest {
        confirm_user_id: MINE,
    };
    let first = client
        .erase(with_key(owner, "erase", erase))
        .await?
        .into_inner();
    assert_eq!(
        client
            .erase(with_key(owner, "erase", erase))
            .await?
            .into_inner(),
        first
    );
    assert_eq!(client.erase(fresh(owner, erase)).await?.into_inner(), first);

    // Whatever the schema holds of that owner, in any table: ids, times, hashes.
    for table in SERVICE.tables {
        let rows: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "SELECT row_to_json(t)::text FROM {} t WHERE owner_id = {}",
            table.name,
            owner.get()
        )))
        .fetch_all(&cell.admin)
        .await?;
        let allowed = ["erasures", "idempotency_keys"].contains(&table.name);
        assert!(rows.is_empty() || allowed, "{}: {rows:?}", table.name);
        for row in rows {
            let bytes: String = row.to_lowercase();
            // Bytes are shown in hexadecimal: "Secret" is 536563726574.
            assert!(
                !bytes.contains("secret") && !bytes.contains("536563726574"),
                "{}: {row}",
                table.name
            );
        }
    }
    let export = client
        .export(fresh(owner, ExportRequest {}))
        .await?
        .into_inner()
        .json;
    assert!(!export.contains("Secret"));
    let again = client
        .create_profile(fresh(owner, profile("Mei")))
        .await
        .unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);
    assert!(
        client
            .set_preferences(fresh(
                owner,
                SetPreferencesRequest {
                    preferences: Some(Preferences::default())
                }
            ))
            .await
            .is_err()
    );

    let other = client
        .get_preferences(fresh(bystander, GetPreferencesRequest {}))
        .await?
        .into_inner();
    assert_eq!(other.currency, "SGD", "another user's data was touched");
    Ok(())
}
