//! MessagePack values as JSON, both ways.
//!
//! What JSON has no word for is an object of one entry: `{"$bin":"00FF"}` for bytes, `{"$ext":[TYPE,"00FF"]}` for an
//! extension, `{"$float":"NaN"}` for a float that is no number. Map keys that are not texts become the text of their JSON.

use std::fmt::{self, Write};

use dhaga_rpc::Value;
use serde_json::{Map, Value as Json, json};

/// Reads one JSON value.
///
/// # Errors
///
/// A [`JsonError`] that quotes the text.
pub fn read(text: &str) -> Result<Value, JsonError> {
    let parsed = serde_json::from_str(text).map_err(|error| error.to_string());
    parsed.and_then(from_json).map_err(|reason| JsonError { text: text.to_owned(), reason })
}

/// Writes a value as one line of JSON.
pub fn write(value: &Value) -> String {
    to_json(value).to_string()
}

/// A text that is not the JSON of a value.
#[derive(Debug)]
pub struct JsonError {
    text: String,
    reason: String,
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not the JSON of a value: {}", self.text, self.reason)
    }
}

impl std::error::Error for JsonError {}

fn from_json(json: Json) -> Result<Value, String> {
    Ok(match json {
        Json::Null => Value::Nil,
        Json::Bool(value) => value.into(),
        Json::Number(number) => from_number(&number)?,
        Json::String(text) => text.into(),
        Json::Array(values) => Value::Array(values.into_iter().map(from_json).collect::<Result<_, _>>()?),
        Json::Object(entries) => match special(&entries) {
            Some(value) => value?,
            None => from_object(entries)?,
        },
    })
}

fn from_number(number: &serde_json::Number) -> Result<Value, String> {
    let float = || number.as_f64().map(Value::from);
    let value = number.as_u64().map(Value::from);
    let value = value.or_else(|| number.as_i64().map(Value::from));
    value.or_else(float).ok_or_else(|| format!("{number} fits no number of MessagePack"))
}

fn from_object(entries: Map<String, Json>) -> Result<Value, String> {
    let entries = entries.into_iter().map(|(key, value)| Ok((key.into(), from_json(value)?)));
    Ok(Value::Map(entries.collect::<Result<_, String>>()?))
}

/// The value that an object of one entry stands for, if it is one of ours.
fn special(entries: &Map<String, Json>) -> Option<Result<Value, String>> {
    let (key, value) = entries.iter().next().filter(|_| entries.len() == 1)?;
    Some(match key.as_str() {
        "$bin" => from_hex(value).map(Value::Binary),
        "$ext" => from_ext(value),
        "$float" => value
            .as_str()
            .and_then(|text| text.parse::<f64>().ok())
            .map(Value::F64)
            .ok_or_else(|| "$float needs a text such as \"NaN\" or \"-inf\"".to_owned()),
        _ => return None,
    })
}

fn from_ext(json: &Json) -> Result<Value, String> {
    let Some([kind, bytes]) = json.as_array().map(Vec::as_slice) else {
        return Err("$ext needs [TYPE,\"HEX\"]".to_owned());
    };
    let kind = kind.as_i64().and_then(|kind| i8::try_from(kind).ok());
    let kind = kind.ok_or("the type of an ext is an integer from -128 to 127")?;
    Ok(Value::Ext(kind, from_hex(bytes)?))
}

fn from_hex(json: &Json) -> Result<Vec<u8>, String> {
    const EXPECTED: &str = "bytes are a text of hexadecimal digits, two a byte";
    let digits = json.as_str().ok_or(EXPECTED)?.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(EXPECTED);
    if !digits.len().is_multiple_of(2) {
        return Err(EXPECTED.to_owned());
    }
    digits.chunks_exact(2).map(|pair| Ok((digit(pair[0])? << 4 | digit(pair[1])?) as u8)).collect()
}

fn to_json(value: &Value) -> Json {
    match value {
        Value::Nil => Json::Null,
        Value::Boolean(value) => json!(value),
        Value::Integer(number) => match number.as_u64() {
            Some(number) => json!(number),
            None => json!(number.as_i64()),
        },
        Value::F32(number) => from_float(f64::from(*number)),
        Value::F64(number) => from_float(*number),
        Value::String(text) => match text.as_str() {
            Some(text) => json!(text),
            None => json!({ "$bin": to_hex(text.as_bytes()) }),
        },
        Value::Binary(bytes) => json!({ "$bin": to_hex(bytes) }),
        Value::Array(values) => values.iter().map(to_json).collect(),
        Value::Map(entries) => entries.iter().map(|(key, value)| (to_key(key), to_json(value))).collect(),
        Value::Ext(kind, bytes) => json!({ "$ext": [kind, to_hex(bytes)] }),
    }
}

fn from_float(number: f64) -> Json {
    if number.is_finite() { json!(number) } else { json!({ "$float": number.to_string() }) }
}

fn to_key(key: &Value) -> String {
    match key.as_str() {
        Some(text) => text.to_owned(),
        None => write(key),
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02X}").expect("a String takes whatever is written");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, value: Value) {
        assert_eq!(read(text).expect(text), value);
        assert_eq!(write(&value), text);
    }

    fn check_refused(text: &str, reason: &str) {
        let error = read(text).expect_err(text).to_string();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn values_read_and_write_the_same() {
        check("null", Value::Nil);
        check("true", true.into());
        check("-5", (-5).into());
        check("18446744073709551615", u64::MAX.into());
        check("-9223372036854775808", i64::MIN.into());
        check("-2.5", Value::F64(-2.5));
        check("\"ধাগা\"", "ধাগা".into());
        check(r#"{"$bin":"00FF"}"#, Value::Binary(vec![0, 255]));
        check(r#"{"$ext":[-1,"CD03E8"]}"#, Value::Ext(-1, vec![0xcd, 3, 0xe8]));
        check(r#"{"$float":"-inf"}"#, Value::F64(f64::NEG_INFINITY));
        check(
            r#"{"a":[1,{"$bin":""}],"b":{}}"#,
            Value::Map(vec![
                ("a".into(), Value::Array(vec![1.into(), Value::Binary(vec![])])),
                ("b".into(), Value::Map(vec![])),
            ]),
        );
    }

    #[test]
    fn what_json_cannot_say_is_written_as_near_as_can_be() {
        assert_eq!(write(&Value::Map(vec![(1.into(), 2.into())])), r#"{"1":2}"#);
        assert_eq!(write(&Value::F32(0.5)), "0.5");
        assert_eq!(write(&Value::F64(f64::NAN)), r#"{"$float":"NaN"}"#);
    }

    #[test]
    fn what_is_no_value_is_refused_in_words() {
        check_refused("nonsense", "expected ident");
        check_refused(r#"{"$bin":"0"}"#, "two a byte");
        check_refused(r#"{"$bin":"0g"}"#, "hexadecimal");
        check_refused(r#"{"$bin":"+1"}"#, "hexadecimal");
        check_refused(r#"{"$ext":["00"]}"#, "[TYPE,\"HEX\"]");
        check_refused(r#"{"$ext":[128,"00"]}"#, "-128 to 127");
    }
}
