//! `#[dhaga_rpc::service]`: one trait becomes a client, the server's glue, and a description.
//!
//! ```text
//!   trait ──▶ model: what is asked for, or why it cannot be ──▶ client ─┐
//!                options: `#[rpc(…)]`                      └──▶ server ─┴──▶ the trait, and both beside it
//! ```
//!
//! Use it through `dhaga_rpc::service`, where its rules are documented.

mod client;
mod description;
mod model;
mod options;
mod server;

use proc_macro::TokenStream;
use quote::quote;

use crate::model::Service;
use crate::options::ServiceOptions;

/// See `dhaga_rpc::service`.
#[proc_macro_attribute]
pub fn service(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand(arguments.into(), item.into()).unwrap_or_else(|error| error.into_compile_error()).into()
}

fn expand(
    arguments: proc_macro2::TokenStream,
    item: proc_macro2::TokenStream,
) -> syn::Result<proc_macro2::TokenStream> {
    let options: ServiceOptions = syn::parse2(arguments)?;
    let mut definition: syn::ItemTrait = syn::parse2(item)?;
    let service = Service::of(&mut definition, options)?;
    let (client, server) = (client::expand(&service), server::expand(&service));
    Ok(quote! { #definition #client #server })
}
