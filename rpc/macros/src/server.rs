//! The server's glue of a service: its methods as handlers.
//!
//! Names that begin with two underscores stand beside the arguments, which the user names.

use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote};

use crate::model::{Argument, Form, Method, Outcome, Service, unraw};
use crate::options::DefaultValue;

pub(crate) fn expand(service: &Service) -> TokenStream {
    let Service { visibility, ident, methods, .. } = service;
    let (server, client) = (format_ident!("{ident}Server"), format_ident!("{ident}Client"));
    let about =
        format!("Serves a [`{ident}`]: give it to [`ServerBuilder::service`](::dhaga_rpc::ServerBuilder::service).");
    let handlers = methods.iter().map(|method| handler(ident, method));
    // As it is written by hand, since the documentation shows it; but the trait may have that name.
    let t = if unraw(ident) == "T" { format_ident!("S") } else { format_ident!("T") };
    quote! {
        #[doc = #about]
        #[allow(dead_code)]
        #visibility struct #server<#t> {
            service: ::std::sync::Arc<#t>,
        }

        #[allow(dead_code)]
        impl<#t: #ident + ::core::marker::Send + ::core::marker::Sync + 'static> #server<#t> {
            /// Serves `service`: all calls of all connections, many at once.
            pub fn new(service: #t) -> Self {
                Self::shared(::std::sync::Arc::new(service))
            }

            /// As [`new`](Self::new), for a service that others hold, too.
            pub fn shared(service: ::std::sync::Arc<#t>) -> Self {
                Self { service }
            }
        }

        #[allow(deprecated)]
        impl<__T: #ident + ::core::marker::Send + ::core::marker::Sync + 'static> ::core::convert::From<#server<__T>>
            for ::dhaga_rpc::Methods
        {
            fn from(__server: #server<__T>) -> Self {
                let __methods = ::dhaga_rpc::Methods::new();
                #(#handlers)*
                ::dhaga_rpc::__private::describe(__methods, &#client::DESCRIPTION)
            }
        }
    }
}

fn handler(service: &Ident, method: &Method) -> TokenStream {
    let Method { ident, conditions, name, arguments, outcome, options, .. } = method;
    let parameters = arguments.iter().map(parameter);
    let defaults = arguments.iter().filter_map(default);
    let given = arguments.iter().map(given);
    // In full: an `Arc` and a `T` may have methods of that name, too, `clone` above all.
    let run = quote!(<__T as #service>::#ident(&*__service #(, #given)*));
    let run = match outcome {
        Outcome::Nothing => quote! {
            #run;
            ::core::result::Result::Ok(())
        },
        Outcome::Answer { form, is_optional, .. } => {
            let run = quote!(::core::result::Result::map_err(#run, |error| ::dhaga_rpc::HandlerError::value(&error)));
            match (form, is_optional) {
                (Form::Bytes, false) => {
                    quote!(::core::result::Result::map(#run, ::dhaga_rpc::__private::ByteBuf::from))
                }
                (Form::Bytes, true) => quote!(::core::result::Result::map(#run, ::dhaga_rpc::__private::byte_buf)),
                _ => run,
            }
        }
    };
    let add = if options.is_inline { quote!(method_inline) } else { quote!(method) };
    quote! {
        #(#conditions)*
        let __service = ::std::sync::Arc::clone(&__server.service);
        #(#conditions)*
        let __methods = __methods.#add(#name, move |#(#parameters),*| {
            #(#defaults)*
            #run
        });
    }
}

/// An argument of the handler, as serde makes it.
fn parameter(argument: &Argument) -> TokenStream {
    let (ident, ty) = (&argument.ident, received(argument));
    match argument.default {
        None => quote!(#ident: #ty),
        Some(_) => quote!(#ident: ::core::option::Option<#ty>),
    }
}

/// The type that owns what comes for an argument.
fn received(argument: &Argument) -> TokenStream {
    let Argument { ty, form, is_optional, .. } = argument;
    let owner = match form {
        Form::Plain => return quote!(#ty),
        Form::BorrowedText => quote!(::std::string::String),
        Form::Bytes | Form::BorrowedBytes => quote!(::dhaga_rpc::__private::ByteBuf),
    };
    if *is_optional { quote!(::core::option::Option<#owner>) } else { owner }
}

/// Puts the default in the place of nil.
fn default(argument: &Argument) -> Option<TokenStream> {
    let Argument { ident, form, is_optional, .. } = argument;
    let ty = received(argument);
    let value = match (argument.default.as_ref()?, form) {
        (DefaultValue::OfType, _) => quote!(<#ty as ::core::default::Default>::default()),
        (DefaultValue::Value(value), Form::Plain) => quote!(#value),
        (DefaultValue::Value(value), owned) => {
            let owned = match owned {
                Form::BorrowedText => quote!(::dhaga_rpc::__private::text),
                Form::BorrowedBytes => quote!(::dhaga_rpc::__private::bytes),
                Form::Bytes | Form::Plain => quote!(::dhaga_rpc::__private::ByteBuf::from),
            };
            if *is_optional { quote!(::core::option::Option::map(#value, #owned)) } else { quote!(#owned(#value)) }
        }
    };
    Some(quote! {
        let #ident: #ty = match #ident {
            ::core::option::Option::Some(__given) => __given,
            ::core::option::Option::None => #value,
        };
    })
}

/// An argument as the method takes it.
fn given(argument: &Argument) -> TokenStream {
    let Argument { ident, form, is_optional, .. } = argument;
    match (form, is_optional) {
        (Form::Plain, _) => quote!(#ident),
        (Form::Bytes, false) => quote!(::dhaga_rpc::__private::ByteBuf::into_vec(#ident)),
        (Form::Bytes, true) => quote!(::dhaga_rpc::__private::into_vec(#ident)),
        (Form::BorrowedText | Form::BorrowedBytes, false) => quote!(&#ident),
        (Form::BorrowedText, true) => quote!(::core::option::Option::as_deref(&#ident)),
        (Form::BorrowedBytes, true) => quote!(::dhaga_rpc::__private::as_bytes(&#ident)),
    }
}
