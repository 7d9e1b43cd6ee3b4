//! A server and calls to it. Run: `cargo run -p dhaga-examples --example hello`. You will see four sums.

use dhaga_rpc::{Client, Server};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Server::builder().method("add", |a: i64, b: i64| Ok(a + b)).bind("127.0.0.1:0")?;
    let client = Client::connect(server.local_addr())?;

    // Looks blocking. In a dhaga it parks the dhaga; on a plain thread, as here, it blocks the thread.
    let sum: i64 = client.call("add", (20, 22))?;
    println!("20 + 22 = {sum}");

    // Three calls at once, each in a dhaga of its own. They may borrow from `main`, which waits for them.
    let double = |n: i64| client.call::<_, i64>("add", (n, n));
    dhaga::scope(|s| {
        for call in [1, 2, 3].map(|n| s.spawn(move || double(n))) {
            println!("and {}", call.join()??);
        }
        Ok(())
    })
}
