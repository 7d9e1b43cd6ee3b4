//! The server's glue of a service: its methods as handlers.
//!
//! Names that begin with two underscores stand beside the arguments, which the user names.

use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote};

use crate::model::{Argument, Form, Method, Outcome, Service};

pub(crate) fn expand(service: &Service) -> TokenStream {
    let Service { visibility, ident, methods, .. } = service;
    let server = format_ident!("{ident}Server");
    let about =
        format!("Serves a [`{ident}`]: give it to [`ServerBuilder::service`](::dhaga_rpc::ServerBuilder::service).");
    let handlers = methods.iter().map(|method| handler(ident, method));
    quote! {
        #[doc = #about]
        #[allow(dead_code)]
        #visibility struct #server<T> {
            service: ::std::sync::Arc<T>,
        }

        #[allow(dead_code)]
        impl<T: #ident + ::core::marker::Send + ::core::marker::Sync + 'static> #server<T> {
            /// Serves `service`: all calls of all connections, many at once.
            pub fn new(service: T) -> Self {
                Self::shared(::std::sync::Arc::new(service))
            }

            /// As [`new`](Self::new), for a service that others hold, too.
            pub fn shared(service: ::std::sync::Arc<T>) -> Self {
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
                __methods
            }
        }
    }
}

fn handler(service: &Ident, method: &Method) -> TokenStream {
    let Method { ident, conditions, name, arguments, outcome, .. } = method;
    let parameters = arguments.iter().map(|Argument { ident, ty, form }| match form {
        Form::Plain => quote!(#ident: #ty),
        Form::BorrowedText => quote!(#ident: ::std::string::String),
        Form::Bytes | Form::BorrowedBytes => quote!(#ident: ::dhaga_rpc::__private::ByteBuf),
    });
    let given = arguments.iter().map(|Argument { ident, form, .. }| match form {
        Form::Plain => quote!(#ident),
        Form::Bytes => quote!(::dhaga_rpc::__private::ByteBuf::into_vec(#ident)),
        Form::BorrowedText | Form::BorrowedBytes => quote!(&#ident),
    });
    // In full: an `Arc` and a `T` may have methods of that name, too, `clone` above all.
    let run = quote!(<__T as #service>::#ident(&*__service #(, #given)*));
    let run = match outcome {
        Outcome::Nothing => quote! {
            #run;
            ::core::result::Result::Ok(())
        },
        Outcome::Answer { form, .. } => {
            let run = quote!(::core::result::Result::map_err(#run, |error| ::dhaga_rpc::HandlerError::value(&error)));
            match form {
                Form::Bytes => quote!(::core::result::Result::map(#run, ::dhaga_rpc::__private::ByteBuf::from)),
                _ => run,
            }
        }
    };
    quote! {
        #(#conditions)*
        let __service = ::std::sync::Arc::clone(&__server.service);
        #(#conditions)*
        let __methods = __methods.method(#name, move |#(#parameters),*| { #run });
    }
}
