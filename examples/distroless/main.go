// Answers every request with a greeting.
package main

import (
	"fmt"
	"log"
	"net/http"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from Go: %s\n", r.URL.Path)
	})
	log.Println("server listens on port 8080")
	log.Fatal(http.ListenAndServe(":8080", nil))
}
