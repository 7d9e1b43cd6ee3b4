//! The client of a service: its methods, which call.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};

use crate::description;
use crate::model::{Argument, Form, Method, Outcome, Service};

pub(crate) fn expand(service: &Service) -> TokenStream {
    let Service { visibility, ident, methods, .. } = service;
    let client = format_ident!("{ident}Client");
    let about = format!("Calls the methods of [`{ident}`] on a server.");
    let (methods, description) = (methods.iter().map(method), description::expand(service));
    quote! {
        #[doc = #about]
        #[derive(Clone, Debug)]
        #visibility struct #client {
            client: ::dhaga_rpc::Client,
        }

        impl #client {
            /// The methods, their arguments and types, as they are written in the trait.
            #[allow(dead_code)]
            pub const DESCRIPTION: ::dhaga_rpc::ServiceDescription = #description;

            /// Connects with the default limits; see [`Client::connect`](::dhaga_rpc::Client::connect).
            ///
            /// # Errors
            ///
            /// As there.
            #[allow(dead_code)]
            pub fn connect(
                address: impl ::dhaga_rpc::__private::ToSocketAddrs,
            ) -> ::core::result::Result<Self, ::dhaga_rpc::CallError> {
                ::core::result::Result::map(::dhaga_rpc::Client::connect(address), Self::new)
            }

            /// Calls through `client`, which may serve other services, too.
            #[allow(dead_code)]
            pub fn new(client: ::dhaga_rpc::Client) -> Self {
                Self { client }
            }

            /// What it calls through: for untyped calls.
            #[allow(dead_code)]
            pub fn client(&self) -> &::dhaga_rpc::Client {
                &self.client
            }

            #(#methods)*
        }
    }
}

fn method(method: &Method) -> TokenStream {
    let Method { ident, attributes, conditions, name, arguments, outcome, options } = method;
    let parameters = arguments.iter().map(|Argument { ident, ty, .. }| quote!(#ident: #ty));
    let sent = arguments.iter().map(sent);
    let sent = quote!((#(#sent,)*));
    let (returned, call) = match outcome {
        Outcome::Nothing => (quote!((), ::dhaga_rpc::CallError), quote!(self.client.notify(#name, #sent))),
        Outcome::Answer { value, error, form, is_optional } => {
            let is_idempotent = options.is_idempotent;
            let timeout = match options.timeout {
                None => quote!(::core::option::Option::None),
                Some(timeout) => {
                    let millis = timeout.as_millis() as u64;
                    quote!(::core::option::Option::Some(::core::time::Duration::from_millis(#millis)))
                }
            };
            let call = quote!(::dhaga_rpc::__private::call(&self.client, #name, #sent, #timeout, #is_idempotent));
            let call = match (form, is_optional) {
                (Form::Bytes, false) => {
                    quote!(::core::result::Result::map(#call, ::dhaga_rpc::__private::ByteBuf::into_vec))
                }
                (Form::Bytes, true) => quote!(::core::result::Result::map(#call, ::dhaga_rpc::__private::into_vec)),
                _ => call,
            };
            (quote!(#value, ::dhaga_rpc::CallError<#error>), call)
        }
    };
    quote! {
        #(#conditions)*
        #(#attributes)*
        #[allow(dead_code, clippy::too_many_arguments)]
        pub fn #ident(&self, #(#parameters),*) -> ::core::result::Result<#returned> {
            #call
        }
    }
}

/// An argument as it is given to serde.
fn sent(argument: &Argument) -> TokenStream {
    let Argument { ident, form, is_optional, .. } = argument;
    match (form, is_optional) {
        (Form::Bytes, false) => quote!(::dhaga_rpc::__private::Bytes::new(&#ident)),
        (Form::BorrowedBytes, false) => quote!(::dhaga_rpc::__private::Bytes::new(#ident)),
        (Form::Bytes, true) => {
            let borrowed = quote!(::core::option::Option::as_deref(&#ident));
            quote!(::core::option::Option::map(#borrowed, ::dhaga_rpc::__private::Bytes::new))
        }
        (Form::BorrowedBytes, true) => {
            quote!(::core::option::Option::map(#ident, ::dhaga_rpc::__private::Bytes::new))
        }
        (Form::Plain | Form::BorrowedText, _) => quote!(#ident),
    }
}
