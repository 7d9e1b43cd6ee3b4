//! What every peer is asked, in either role.

use dhaga_rpc::Value;

/// One row of the matrix.
pub struct Case {
    pub name: String,
    pub step: Step,
}

/// What is done. The same for both roles, as far as roles allow.
#[derive(Clone)]
pub enum Step {
    /// The value there and back.
    Echo(Value),
    Add(i64, i64),
    /// `$/hello`, and then a call.
    Hello,
    /// The method fails with this error, which must arrive as it is, or at least with this text in it.
    Fail(Value, &'static str),
    /// A call that must be answered with an error: the method, and its arguments.
    Refused(&'static str, Vec<Value>),
    /// More arguments than the method has: answered either way, and the connection lives.
    Surplus,
    /// A notification that must have its effect.
    Note(Value),
    /// A notification that can have none; the calls after it are answered as ever.
    Unheard(&'static str),
    /// This many calls at once.
    Pipelined(usize),
    /// A slow call and a quick one: the quick one is answered first.
    Overtaking,
    /// The handler calls its caller back, whose handler calls back, this deep.
    Nested(u64),
    /// The client goes while its call is in flight.
    ClientLeaves,
    /// The server goes while a call is in flight.
    ServerLeaves,
}

/// How long the slow method of [`Step::Overtaking`] takes.
pub const SLOW_MS: u64 = 600;
/// How long a call takes during which somebody leaves.
pub const LEFT_MS: u64 = 1000;

/// Each length at which MessagePack changes its encoding.
const SIZES: [usize; 9] = [0, 1, 31, 32, 255, 256, 65_535, 65_536, 1 << 20];

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, step: Step| cases.push(Case { name: name.to_owned(), step });
    scalars(&mut add);
    containers(&mut add);
    errors(&mut add);
    traffic(&mut add);
    cases
}

fn scalars(add: &mut impl FnMut(&str, Step)) {
    for size in SIZES {
        add(&format!("str of {size}"), Step::Echo("x".repeat(size).into()));
    }
    for size in SIZES {
        add(&format!("bin of {size}"), Step::Echo(Value::Binary(vec![b'b'; size])));
    }
    add("bin: every byte", Step::Echo(Value::Binary((0..=255).collect())));
    add("str: scripts and emoji", Step::Echo("ধাগা धागा \u{1f9f5}".into()));
    add("str: a zero byte", Step::Echo("a\0b".into()));
    add("nil", Step::Echo(Value::Nil));
    add("booleans", echo([true, false]));

    add("positive fixint", echo([0, 1, 126, 127]));
    add("negative fixint", echo([-1, -31, -32]));
    add("uint 8", echo([128, 254, 255]));
    add("uint 16", echo([256, 65_534, 65_535]));
    add("uint 32", echo([65_536_i64, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]));
    add("uint 64 within 53 bits", echo([1_i64 << 32, (1 << 53) - 1]));
    add("uint 64 within 63 bits", echo([(1_i64 << 53) + 1, i64::MAX - 1, i64::MAX]));
    add("uint 64 within 64 bits", echo([1_u64 << 63, u64::MAX - 1, u64::MAX]));
    add("int 8", echo([-33, -127, -128]));
    add("int 16", echo([-129, -32_767, -32_768]));
    add("int 32", echo([-32_769_i64, -(1 << 31) + 1, -(1 << 31)]));
    add("int 64 within 53 bits", echo([-(1_i64 << 31) - 1, -(1 << 53) + 1]));
    add("int 64 within 64 bits", echo([-(1_i64 << 53) - 1, i64::MIN + 1, i64::MIN]));

    add("float 32", Step::Echo(Value::F32(1.5)));
    add("float 64", echo([0.1, -1.5e-300, 5e-324]));
    add("float 64: large", echo([-1.5e300, f64::MAX]));
    add("float: a whole number", Step::Echo(Value::F64(2.0)));
    add("float: both zeros", echo([0.0, -0.0]));
    add("float: infinities", echo([f64::INFINITY, f64::NEG_INFINITY]));
    add("float: not a number", Step::Echo(Value::F64(f64::NAN)));
}

fn containers(add: &mut impl FnMut(&str, Step)) {
    for count in [0, 15, 16, 65_536] {
        add(&format!("array of {count}"), echo(0..count));
    }
    for count in [0, 15, 16, 65_536] {
        // Short, since one of the peers reads such a map in quadratic time.
        let entries = (0..count).map(|i| (i.to_string().into(), (i % 100).into()));
        add(&format!("map of {count}"), Step::Echo(Value::Map(entries.collect())));
    }
    let keys: Vec<(Value, Value)> = vec![(1.into(), "one".into()), ((-7).into(), "seven".into())];
    add("map with integers as keys", Step::Echo(Value::Map(keys)));
    add("arrays, 16 deep", Step::Echo(nested(16, |inner| Value::Array(vec![inner]))));
    add("maps, 16 deep", Step::Echo(nested(16, |inner| Value::Map(vec![("in".into(), inner)]))));
    let inner =
        Value::Map(vec![("a".into(), Value::Array(vec![Value::Nil, true.into()])), ("b".into(), (-1.5).into())]);
    add(
        "arrays and maps in each other",
        Step::Echo(Value::Array(vec![1.into(), "".into(), inner, Value::Array(vec![])])),
    );

    add("ext of 1 byte", Step::Echo(Value::Ext(5, vec![7])));
    add("ext of 16 bytes", Step::Echo(Value::Ext(100, (0..16).collect())));
    add("ext of 300 bytes", Step::Echo(Value::Ext(6, vec![9; 300])));
    add("ext of -1, a timestamp", Step::Echo(Value::Ext(-1, vec![0x69, 0x21, 0, 0])));
}

fn errors(add: &mut impl FnMut(&str, Step)) {
    add("error: text", Step::Fail("no such file".into(), "no such file"));
    add("error: text of all scripts", Step::Fail("ধাগা: ছিঁড়ে গেছে".into(), "ধাগা"));
    add("error: long text", Step::Fail("x".repeat(70_000).into(), "xxxxxxxxxxxxxxxx"));
    add("error: empty text", Step::Fail("".into(), ""));
    add("error: [code, text]", Step::Fail(Value::Array(vec![0.into(), "over quota".into()]), "over quota"));
    add("error: [text]", Step::Fail(Value::Array(vec!["over quota".into()]), "over quota"));
    let map = vec![("code".into(), 7.into()), ("message".into(), "over quota".into())];
    add("error: map", Step::Fail(Value::Map(map), "over quota"));
    add("error: number", Step::Fail(4711.into(), "4711"));
    add("error: 0", Step::Fail(0.into(), ""));
    add("error: false", Step::Fail(false.into(), ""));
    add("error: unknown method", Step::Refused("no_such_method", vec![1.into()]));
    add("error: unknown method of the protocol", Step::Refused("$/no_such_method", vec![1.into()]));
    add("error: too few arguments", Step::Refused("add", vec![1.into()]));
    add("error: arguments of a wrong type", Step::Refused("add", vec!["a".into(), Value::Array(vec![])]));
    add("more arguments than wanted", Step::Surplus);
}

fn traffic(add: &mut impl FnMut(&str, Step)) {
    add("a call", Step::Add(20, 22));
    add("a call that asks for extensions first", Step::Hello);
    add("a notification", Step::Note("quiet".into()));
    add("a notification of 64 KiB", Step::Note("q".repeat(1 << 16).into()));
    add("a notification nobody knows", Step::Unheard("no_such_method"));
    add("a notification that fails", Step::Unheard("fail"));
    add("1000 calls at once", Step::Pipelined(1000));
    add("answers out of order", Step::Overtaking);
    add("calls nested 10 deep", Step::Nested(10));
    add("the client goes in a call", Step::ClientLeaves);
    add("the server goes in a call", Step::ServerLeaves);
}

fn echo<T: Into<Value>>(values: impl IntoIterator<Item = T>) -> Step {
    Step::Echo(Value::Array(values.into_iter().map(Into::into).collect()))
}

fn nested(depth: usize, wrap: impl Fn(Value) -> Value) -> Value {
    (0..depth).fold("core".into(), |inner, _| wrap(inner))
}

/// Whether two values are the same to a program: float 32 equals float 64, the entries of maps have no order, and a NaN equals
/// every NaN; but an integer is no float, and 0.0 is not -0.0.
pub fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::F32(_) | Value::F64(_), Value::F32(_) | Value::F64(_)) => {
            let (left, right) = (left.as_f64().unwrap_or_default(), right.as_f64().unwrap_or_default());
            left.to_bits() == right.to_bits() || left.is_nan() && right.is_nan()
        }
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same(left, right))
        }
        (Value::Map(left), Value::Map(right)) => {
            let (left, right) = (by_key(left), by_key(right));
            left.len() == right.len() && left.iter().zip(&right).all(|((a, x), (b, y))| a == b && same(x, y))
        }
        _ => left == right,
    }
}

/// Whether some text inside a value holds `text`.
pub fn says(value: &Value, text: &str) -> bool {
    match value {
        Value::String(said) => said.as_str().is_some_and(|said| said.contains(text)),
        Value::Array(values) => values.iter().any(|value| says(value, text)),
        Value::Map(entries) => entries.iter().any(|(_, value)| says(value, text)),
        other => other.to_string().contains(text),
    }
}

fn by_key(entries: &[(Value, Value)]) -> Vec<(String, &Value)> {
    let mut sorted: Vec<_> = entries.iter().map(|(key, value)| (key.to_string(), value)).collect();
    sorted.sort_by(|left, right| left.0.cmp(&right.0));
    sorted
}

/// As much of a value as fits a line.
pub fn shown(value: &Value) -> String {
    const CHARS_MAX: usize = 160;
    let text = match value {
        Value::Binary(bytes) => format!("bin of {}", bytes.len()),
        other => other.to_string(),
    };
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text,
    }
}
