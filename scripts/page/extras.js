// What only some rooms and answers need, as one file.
export { default as hljs } from "./highlight.js";
export { default as Plot } from "uplot";
