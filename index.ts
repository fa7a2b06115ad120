/** What an application imports: `import { connect, serve, deploy } from "holdfast"`. Nothing is run, and nothing that is not used needs to stay. */

export { connect, serve } from "./api.ts";
export { deploy } from "./deploy.ts";
export type * from "./library.ts";
export { HoldfastError } from "./library.ts";
