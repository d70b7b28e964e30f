//! What may be written in a profile, an address and the preferences.

use cell_kit::Failure;
use titan_proto::user::v1::{AddressFields, Preferences};

/// Takes away what surrounds a text, and checks its length.
///
/// # Errors
/// When it is empty though it must not be, or too long.
pub fn text(name: &str, value: &str, required: bool, longest: usize) -> Result<String, Failure> {
    let value = value.trim();
    if required && value.is_empty() {
        return Err(Failure::invalid(format!("{name} is missing")));
    }
    if value.chars().count() > longest {
        return Err(Failure::invalid(format!(
            "{name} is longer than {longest} characters"
        )));
    }
    if value.chars().any(char::is_control) {
        return Err(Failure::invalid(format!("{name} has control characters")));
    }
    Ok(value.to_owned())
}

/// An e-mail address, in lower case; or nothing.
///
/// # Errors
/// When it cannot be one.
pub fn email(value: &str) -> Result<String, Failure> {
    let value = text("email", value, false, 254)?.to_lowercase();
    let plausible = value.is_empty()
        || value.split_once('@').is_some_and(|(local, domain)| {
            !local.is_empty() && domain.contains('.') && !domain.contains('@')
        }) && !value.contains(char::is_whitespace);
    if plausible {
        Ok(value)
    } else {
        Err(Failure::invalid(
            "email is not an address, as in somebody@example.com",
        ))
    }
}

/// A telephone number in E.164; or nothing.
///
/// # Errors
/// When it is not one.
pub fn phone(value: &str) -> Result<String, Failure> {
    let value = value.trim();
    let digits = value.strip_prefix('+').unwrap_or_default();
    let plausible = value.is_empty()
        || (8..=15).contains(&digits.len())
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && !digits.starts_with('0');
    if plausible {
        Ok(value.to_owned())
    } else {
        Err(Failure::invalid("phone is not in E.164, as in +6591234567"))
    }
}

/// A language tag; `otherwise` when none is given.
///
/// # Errors
/// When it is not one.
pub fn language(name: &str, value: &str, otherwise: &str) -> Result<String, Failure> {
    let value = value.trim();
    if value.is_empty() {
        return Ok(otherwise.to_owned());
    }
    let plausible = value.len() <= 35
        && value.split('-').all(|part| {
            (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
        });
    if plausible {
        Ok(value.to_owned())
    } else {
        Err(Failure::invalid(format!(
            "{name} is not a language tag, as in en-SG"
        )))
    }
}

/// An https URL; or nothing.
///
/// # Errors
/// When it is not one.
pub fn url(name: &str, value: &str) -> Result<String, Failure> {
    let value = text(name, value, false, 2048)?;
    if value.is_empty()
        || (value.starts_with("https://") && value.len() > 8 && !value.contains(' '))
    {
        return Ok(value);
    }
    Err(Failure::invalid(format!("{name} is not an https URL")))
}

/// The fields of an address.
///
/// # Errors
/// Names the first that cannot stand.
pub fn address(fields: Option<&AddressFields>) -> Result<AddressFields, Failure> {
    let fields = fields.ok_or_else(|| Failure::invalid("fields is missing"))?;
    let country = fields.country.trim().to_uppercase();
    if country.len() != 2 || !country.bytes().all(|byte| byte.is_ascii_uppercase()) {
        return Err(Failure::invalid(
            "country is not an ISO 3166-1 code of two letters, as in SG",
        ));
    }
    Ok(AddressFields {
        recipient: text("recipient", &fields.recipient, true, 200)?,
        phone: phone(&fields.phone)?,
        line1: text("line1", &fields.line1, true, 200)?,
        line2: text("line2", &fields.line2, false, 200)?,
        city: text("city", &fields.city, true, 100)?,
        region: text("region", &fields.region, false, 100)?,
        postal_code: text("postal_code", &fields.postal_code, false, 20)?,
        country,
    })
}

/// The preferences.
///
/// # Errors
/// Names the first that cannot stand.
pub fn preferences(given: Option<&Preferences>) -> Result<Preferences, Failure> {
    let given = given.ok_or_else(|| Failure::invalid("preferences is missing"))?;
    if !given.currency.is_empty() {
        cell_kit::Currency::new(&given.currency)?;
    }
    if given.switches.len() > 64 {
        return Err(Failure::invalid("more than 64 switches"));
    }
    for (name, value) in &given.switches {
        text("the name of a switch", name, true, 64)?;
        text("the value of a switch", value, false, 256)?;
    }
    Ok(Preferences {
        language: language("language", &given.language, "")?,
        time_zone: text("time_zone", &given.time_zone, false, 64)?,
        ..given.clone()
    })
}
