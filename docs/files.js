// Search needs a server, as browsers let no page of the file system read another file: there its box is hidden.
if (location.protocol === "file:") {
  document.documentElement.insertAdjacentHTML("beforeend", "<style>.md-search, [for=__search] { display: none }</style>");
}
