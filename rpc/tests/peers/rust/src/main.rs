//! The crate `msgpack-rpc`, on tokio, in both roles; see README.md two folders up.

use std::error::Error;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use msgpack_rpc::{Client, Endpoint, ServiceWithClient, Value};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::compat::TokioAsyncReadCompatExt;

type Answer = Pin<Box<dyn Future<Output = Result<Value, Value>> + Send>>;

#[derive(Clone, Default)]
struct Peer {
    kept: Arc<Mutex<Vec<Value>>>,
}

impl ServiceWithClient for Peer {
    type RequestFuture = Answer;

    fn handle_request(&mut self, client: &mut Client, method: &str, params: &[Value]) -> Answer {
        let numbers: Vec<i64> = params.iter().filter_map(Value::as_i64).collect();
        let answer = match (method, params, &numbers[..]) {
            ("echo", [value], _) => Ok(value.clone()),
            ("add", [_, _], [i, j]) => i.checked_add(*j).map(Value::from).ok_or("the sum does not fit".into()),
            ("fail", [value], _) => Err(value.clone()),
            ("sleep", _, [ms]) => return Box::pin(sleep(*ms)),
            ("note", [value], _) => {
                self.kept.lock().unwrap().push(value.clone());
                Ok(Value::Nil)
            }
            ("notes", _, _) => Ok(Value::Array(std::mem::take(&mut *self.kept.lock().unwrap()))),
            ("nest", _, [0]) => Ok(0.into()),
            ("nest", _, [depth]) => {
                let nested = client.request("nest", &[(depth - 1).into()]);
                return Box::pin(async move { Ok((nested.await?.as_i64().ok_or("no number")? + 1).into()) });
            }
            _ => Err(format!("no such method: {method} with {} parameters", params.len()).into()),
        };
        Box::pin(ready(answer))
    }

    fn handle_notification(&mut self, _: &mut Client, method: &str, params: &[Value]) {
        if let ("note", [value]) = (method, params) {
            self.kept.lock().unwrap().push(value.clone());
        }
    }
}

async fn sleep(ms: i64) -> Result<Value, Value> {
    tokio::time::sleep(Duration::from_millis(ms.unsigned_abs())).await;
    Ok(ms.into())
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on {}", listener.local_addr()?);
    let peer = Peer::default();
    loop {
        let (socket, _) = listener.accept().await?;
        tokio::spawn(Endpoint::new(socket.compat(), peer.clone()));
    }
}

fn outcome(answer: Result<Value, Value>) -> Value {
    match answer {
        Ok(result) => Value::Array(vec!["ok".into(), result]),
        Err(error) => Value::Array(vec!["error".into(), error]),
    }
}

async fn many(client: &Client, calls: &[Value]) -> Value {
    let (ended, mut ends) = mpsc::unbounded_channel();
    for (index, call) in calls.iter().enumerate() {
        let answer = client.request(call[0].as_str().unwrap_or_default(), array(&call[1]));
        let ended = ended.clone();
        tokio::spawn(async move { ended.send(Value::Array(vec![index.into(), outcome(answer.await)])) });
    }
    drop(ended);
    let mut all = Vec::new();
    while let Some(end) = ends.recv().await {
        all.push(end);
    }
    outcome(Ok(Value::Array(all)))
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

async fn call(address: &str) -> Result<(), Box<dyn Error>> {
    let socket = TcpStream::connect(address).await?;
    let endpoint = Endpoint::new(socket.compat(), Peer::default());
    let client = endpoint.client();
    tokio::spawn(endpoint);
    loop {
        let step = client.request("next", &[]).await.map_err(|error| error.to_string())?;
        let [kind, method, params] = array(&step) else { return Ok(()) };
        let (method, params) = (method.as_str().unwrap_or_default(), array(params));
        let report = match kind.as_str() {
            Some("call") => outcome(client.request(method, params).await),
            Some("many") => many(&client, params).await,
            Some("notify") => {
                let _ = client.notify(method, params).await;
                outcome(Ok(Value::Nil))
            }
            Some("leave") => {
                let _unanswered = client.request(method, params);
                tokio::time::sleep(Duration::from_millis(100)).await;
                return Ok(());
            }
            _ => Value::Array(vec!["unable".into(), Value::Nil]),
        };
        client.request("report", &[report]).await.map_err(|error| error.to_string())?;
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    match &args[1..] {
        [role] if role == "serve" => serve().await,
        [_, host, port] => call(&format!("{host}:{port}")).await,
        _ => Err("usage: dhaga-peer serve | call HOST PORT".into()),
    }
}
