//! `mcp`: the mesh as a server of the Model Context Protocol over standard input and output, so that any agent can list
//! nodes and agents, delegate to them, and read and prompt sessions.

mod tools;
mod transcript;
mod wait;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use mesh_control::Client;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation, ListToolsResult,
    PaginatedRequestParams, ServerCapabilities, ServerConfig,
};
use rmcp::service::{RequestContext, serve_server};
use rmcp::{ErrorData, RoleServer, ServerHandler};

use crate::failure::Failure;

const INSTRUCTIONS: &str = "A mesh of machines with agents. list_agents says whom to ask; delegate gives one of them a task and \
                            returns its answer. Work goes on when a call ends early: read_session and prompt_session go on \
                            with a session by its id.";

/// Serves until standard input ends.
pub(crate) async fn serve(client: &Client) -> Result<(), Failure> {
    let fault =
        |error: io::Error| Failure::new("input", format!("standard input or output is not usable: {error}"));
    let input = io::stdin().as_fd().try_clone_to_owned().map_err(fault)?;
    let output = io::stdout().as_fd().try_clone_to_owned().map_err(fault)?;
    let (input, output) =
        (tokio::fs::File::from_std(File::from(input)), tokio::fs::File::from_std(File::from(output)));
    let served = serve_server(Server { client: client.clone() }, (input, output)).await;
    let service = match served {
        Ok(service) => service,
        // Whoever started this ended before it said anything.
        Err(rmcp::service::ServerInitializeError::ConnectionClosed(_)) => return Ok(()),
        Err(error) => return Err(Failure::new("mcp", format!("the caller does not speak MCP: {error}"))),
    };
    service.waiting().await.map_err(|error| Failure::new("mcp", format!("the server failed: {error}")))?;
    Ok(())
}

struct Server {
    client: Client,
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("qmt-cli", env!("CARGO_PKG_VERSION")))
            .with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(tools::list()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = serde_json::Value::Object(request.arguments.unwrap_or_default());
        let called = tools::call(&self.client, &request.name, arguments, &context).await;
        Ok(match called {
            Ok(text) => CallToolResult::success(vec![ContentBlock::text(text)]),
            Err(failure) => {
                let mend = failure.mend().map(|mend| format!(" ({mend})")).unwrap_or_default();
                let text = format!("{}: {}{mend}", failure.code(), failure.message());
                CallToolResult::error(vec![ContentBlock::text(text)])
            }
        }
        .into())
    }
}
