/** Give the visitor a file that the page made. */
export function saveText(fileName: string, mediaType: string, text: string): void {
  const address = URL.createObjectURL(new Blob([text], { type: mediaType }));
  open(address, fileName);
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** Have the browser download what an address answers with. */
export function open(address: string, fileName: string): void {
  const link = document.createElement("a");
  link.href = address;
  link.download = fileName;
  document.body.append(link);
  link.click();
  link.remove();
}
