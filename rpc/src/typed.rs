//! Services of one trait: the attribute, and what the code that it makes uses.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::Client;
use crate::description::ServiceDescription;
use crate::error::CallError;
use crate::service::Methods;

/// Makes a service of a trait: beside `trait Stock` stand a `StockClient`, which calls it, and a `StockServer`, which serves
/// whatever implements it.
///
/// A method is a plain function: what waits in it parks its dhaga. It takes `&self` and up to eight arguments that serde can
/// send, and returns `Result<T, E>`; the client's method returns `Result<T, CallError<E>>`, with the service's own error in
/// [`CallError::App`]. Structs travel as maps of named fields; `Vec<u8>` and `&[u8]` as bytes, also in an `Option`, and so does
/// a `bytes::Bytes` if that crate's feature `serde` is on. A missing argument at the end reads as nil, so an `Option` is `None`
/// and one with a default is that, and surplus ones are ignored: either side may be older.
///
/// | option | means |
/// |---|---|
/// | `#[service(name = "stock")]` | methods are called `stock.take` on the wire; without it, `take` |
/// | `#[rpc(name = "…")]` | another name for this method |
/// | `#[rpc(timeout = "500ms")]` | how long its calls wait, instead of [`Limits::call_timeout`](crate::Limits); also `"2s"`, `"3m"` |
/// | `#[rpc(idempotent)]` | may run twice: when the connection ends before the answer, it is called once more |
/// | `#[rpc(notify)]` | is not answered, and returns nothing; the call returns when it is on its way |
/// | `#[rpc(inline)]` | promises that its code does not wait, see [`Methods::method_inline`](crate::Methods::method_inline) |
///
/// Before an argument, `#[rpc(default)]` and `#[rpc(default = expression)]` say what the method gets when a caller sends nil or
/// leaves the argument out, which can be done at the end only; the value is that of the type's `Default` or of the expression,
/// made anew for each call. The client's own method takes all arguments.
///
/// What every client has: `connect`, `new` (of a [`Client`], which many services may share), `client`, and `DESCRIPTION`.
///
/// # Examples
///
/// ```
/// use dhaga_rpc::CallError;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize)]
/// pub enum StockError {
///     Missing { left: u32 },
/// }
///
/// #[dhaga_rpc::service(name = "stock")]
/// pub trait Stock {
///     /// Takes `count` pieces, and returns how many are left.
///     fn take(&self, article: &str, count: u32) -> Result<u32, StockError>;
///     #[rpc(idempotent, timeout = "2s")]
///     fn picture(&self, article: &str, #[rpc(default = 100)] width: u32) -> Result<Vec<u8>, StockError>;
///     #[rpc(notify)]
///     fn viewed(&self, article: &str);
/// }
///
/// struct Shelf;
///
/// impl Stock for Shelf {
///     fn take(&self, _article: &str, count: u32) -> Result<u32, StockError> {
///         10_u32.checked_sub(count).ok_or(StockError::Missing { left: 10 })
///     }
///     fn picture(&self, article: &str, width: u32) -> Result<Vec<u8>, StockError> {
///         Ok(format!("{article} {width}").into_bytes())
///     }
///     fn viewed(&self, _article: &str) {}
/// }
///
/// let server = dhaga_rpc::Server::builder().service(StockServer::new(Shelf)).bind("127.0.0.1:0")?;
/// let stock = StockClient::connect(server.local_addr())?;
/// stock.viewed("pen")?;
/// assert_eq!(stock.take("pen", 3)?, 7);
/// assert_eq!(stock.picture("pen", 50)?, b"pen 50");
/// let older: serde_bytes::ByteBuf = stock.client().call("stock.picture", ("pen",))?;
/// assert_eq!(older, b"pen 100");
/// assert!(matches!(stock.take("pen", 30), Err(CallError::App(StockError::Missing { left: 10 }))));
/// # impl std::fmt::Display for StockError {
/// #     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{self:?}") }
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub use dhaga_rpc_macros::service;

/// For the attribute's code only.
#[doc(hidden)]
pub mod __private {
    pub use dhaga::net::ToSocketAddrs;

    pub use serde_bytes::{ByteBuf, Bytes};

    use super::*;

    pub use crate::description::{method_description, service_description};

    pub fn describe(methods: Methods, service: &'static ServiceDescription) -> Methods {
        methods.described(service)
    }

    pub fn into_vec(bytes: Option<ByteBuf>) -> Option<Vec<u8>> {
        bytes.map(ByteBuf::into_vec)
    }

    pub fn byte_buf(bytes: Option<Vec<u8>>) -> Option<ByteBuf> {
        bytes.map(ByteBuf::from)
    }

    pub fn as_bytes(bytes: &Option<ByteBuf>) -> Option<&[u8]> {
        bytes.as_ref().map(|bytes| &bytes[..])
    }

    pub fn text(default: &str) -> String {
        default.to_owned()
    }

    pub fn bytes(default: &[u8]) -> ByteBuf {
        ByteBuf::from(default)
    }

    pub fn call<P, R, E>(
        client: &Client,
        method: &str,
        params: P,
        timeout: Option<Duration>,
        is_idempotent: bool,
    ) -> Result<R, CallError<E>>
    where
        P: Serialize,
        R: DeserializeOwned,
        E: DeserializeOwned,
    {
        client.call_again(method, params, timeout, is_idempotent).map_err(CallError::typed)
    }
}
