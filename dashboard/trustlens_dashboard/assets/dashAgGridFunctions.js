/* Functions that the column definitions of the tables call by name. */
"use strict";

window.dashAgGridFunctions = window.dashAgGridFunctions || {};

/** Returns a number as text with three significant digits; empty if the value is missing. */
window.dashAgGridFunctions.formatNumber = (value) => {
  if (value === null || value === undefined || value === "") return "";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-3)) return value.toExponential(2).replace("e+", "e");
  if (Number.isInteger(value)) return value.toLocaleString("en").replaceAll(",", "\u202f");
  return String(Number(value.toPrecision(3)));
};
